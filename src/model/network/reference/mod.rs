//! The reference engine: candle tensors that hold integers in floats, on the processor or on CUDA.
//!
//! Products are single-precision matrix products whose partial sums stay below 2^24; everything
//! else is double precision with integers below 2^53. So every operation is exact or correctly rounded
//! wherever it runs (docs/exactness.md).

mod replica;
mod streams;
mod tensors;

use std::sync::Arc;

use candle_core::Device;

use self::replica::{PASS, Replica};
use self::streams::Streams;
use self::tensors::Result;
use super::{Batch, Engine, Memory, Network, Sequence, Step};
use super::{check_class, check_latents, check_rows, check_sequences};
use crate::model::ModelError;

/// A network at work as tensors, on one or several devices.
#[derive(Debug)]
pub struct Reference {
    network: Arc<Network>,
    replicas: Vec<Replica>,
}

impl Reference {
    /// An engine that splits every batch over `devices`.
    ///
    /// # Errors
    /// If there is no device, or if one has too little memory or does not compute exactly.
    pub fn new(network: Arc<Network>, devices: &[Device]) -> Result<Reference> {
        let replica = |device: &Device| {
            let replica = Replica::new(network.clone(), device.clone());
            replica.map_err(|error| tensors::named(device, error))
        };
        let replicas = devices.iter().map(replica).collect::<Result<Vec<_>>>()?;
        match replicas.is_empty() {
            true => Err(ModelError::Device("none is given".into())),
            false => Ok(Reference { network, replicas }),
        }
    }

    /// Runs every part of `items` on a device of its own, and joins the results in order.
    fn spread<T: Sync, R: Send>(
        &self,
        items: &[T],
        run: impl Fn(&Replica, &[T]) -> Result<Vec<R>> + Sync,
    ) -> Result<Vec<R>> {
        let share = items.len().div_ceil(self.replicas.len()).max(1);
        in_parallel(
            items.chunks(share).zip(&self.replicas),
            |(part, replica)| replica.named(run(replica, part)),
        )
    }
}

/// The CUDA devices of this machine; none if the program has been built without CUDA.
pub fn cuda_devices() -> Vec<Device> {
    (0..)
        .map_while(|number| Device::new_cuda(number).ok())
        .collect()
}

/// A CUDA device by its number.
///
/// # Errors
/// If there is none, or if the program has been built without CUDA.
pub fn cuda_device(number: usize) -> Result<Device> {
    Device::new_cuda(number).map_err(|error| ModelError::Device(error.to_string()))
}

/// Runs the jobs at the same time, and joins their results in order.
fn in_parallel<J: Send, R: Send>(
    jobs: impl Iterator<Item = J>,
    run: impl Fn(J) -> Result<Vec<R>> + Sync,
) -> Result<Vec<R>> {
    let mut jobs: Vec<J> = jobs.collect();
    match (jobs.pop(), jobs.is_empty()) {
        (None, _) => Ok(Vec::new()),
        (Some(job), true) => run(job),
        (Some(last), false) => std::thread::scope(|scope| {
            let run = &run;
            let workers: Vec<_> = jobs
                .into_iter()
                .map(|job| scope.spawn(move || run(job)))
                .collect();
            let last = run(last);
            let mut all = Vec::new();
            for worker in workers {
                let part = worker.join();
                all.extend(part.map_err(|_| ModelError::Device("a thread panicked".into()))??);
            }
            all.extend(last?);
            Ok(all)
        }),
    }
}

impl Engine for Reference {
    fn encode(&self, latents: &[&[u16]]) -> Result<Vec<Memory>> {
        check_latents(self.network.config(), latents)?;
        self.spread(latents, |replica, part| {
            let passes = part.chunks(PASS).map(|part| replica.encode_pass(part));
            Ok(passes.collect::<Result<Vec<_>>>()?.concat())
        })
    }

    fn hidden(&self, sequences: &[Sequence]) -> Result<Vec<Vec<i8>>> {
        check_sequences(self.network.config(), sequences)?;
        self.spread(sequences, |replica, part| {
            let passes = part.chunks(PASS).map(|part| replica.pass(part));
            Ok(passes.collect::<Result<Vec<_>>>()?.concat())
        })
    }

    fn batch(&self, slots: usize) -> Result<Box<dyn Batch + '_>> {
        let share = slots.div_ceil(self.replicas.len());
        let streams = |replica| Streams::new(replica, share);
        Ok(Box::new(Slots {
            slots,
            replicas: self.replicas.iter().map(streams).collect::<Result<_>>()?,
        }))
    }

    fn class_logits(&self, rows: &[i8]) -> Result<Vec<i32>> {
        check_rows(self.network.config(), rows)?;
        let rows: Vec<&[i8]> = rows.chunks_exact(self.network.config().d_model).collect();
        self.spread(&rows, |replica, part| replica.class_logits(&part.concat()))
    }

    fn token_logits(&self, rows: &[i8], class: usize) -> Result<Vec<i32>> {
        check_rows(self.network.config(), rows)?;
        check_class(self.network.config(), class)?;
        let rows: Vec<&[i8]> = rows.chunks_exact(self.network.config().d_model).collect();
        self.spread(&rows, |replica, part| {
            replica.token_logits(&part.concat(), class)
        })
    }
}

/// The slots of the step-by-step path, dealt out to the devices one by one.
struct Slots<'a> {
    slots: usize,
    replicas: Vec<Streams<'a>>,
}

impl Batch for Slots<'_> {
    fn start(&mut self, slot: usize, memory: &Memory) -> Result<()> {
        if slot >= self.slots {
            return Err(ModelError::Input("no such slot".into()));
        }
        let count = self.replicas.len();
        self.replicas[slot % count].start(slot / count, memory)
    }

    fn step(&mut self, steps: &[Step]) -> Result<Vec<i8>> {
        let count = self.replicas.len();
        let mut parts: Vec<Vec<(usize, Step)>> = vec![Vec::new(); count];
        for (index, &Step { slot, tokens }) in steps.iter().enumerate() {
            let step = Step {
                slot: slot / count,
                tokens,
            };
            parts[slot % count].push((index, step));
        }
        for (streams, part) in self.replicas.iter().zip(&parts) {
            streams.check(part.iter().map(|(_, step)| *step))?;
        }
        let jobs = self.replicas.iter_mut().zip(&parts);
        let found = in_parallel(jobs, |(streams, part)| {
            let steps: Vec<Step> = part.iter().map(|(_, step)| *step).collect();
            streams.step(&steps)
        })?;
        // back from the order of the devices into that of the steps
        let width = found.len() / steps.len().max(1);
        let mut rows = vec![0; found.len()];
        for ((index, _), row) in parts.iter().flatten().zip(found.chunks_exact(width.max(1))) {
            rows[index * width..(index + 1) * width].copy_from_slice(row);
        }
        Ok(rows)
    }
}
