//! What evaluates the networks of models: the processor, and a device if there is one.

use std::collections::HashMap;
use std::fmt::{Display, Formatter};
use std::sync::{Arc, OnceLock};

use parking_lot::{Mutex, RwLock};

use crate::model::network::reference::{Reference, cuda_device, cuda_devices};
use crate::model::network::simd::Simd;
use crate::model::network::{Engine, Memory, Network, Sequence};
use crate::model::{Model, ModelError, ModelHash};

use super::gather::Gather;
use super::lanes::Lanes;

/// An engine that all threads share.
pub type SharedEngine = Arc<dyn Engine>;

/// Where the networks of models are evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// On all CUDA devices that are found, otherwise on the processor.
    #[default]
    Auto,
    Cpu,
    /// On this CUDA device.
    Cuda(usize),
}

impl Device {
    /// The devices that can be named: `auto`, `cpu`, `cuda` and `cuda:N`.
    pub fn parse(text: &str) -> Option<Device> {
        match text {
            "auto" => Some(Device::Auto),
            "cpu" => Some(Device::Cpu),
            "cuda" => Some(Device::Cuda(0)),
            _ => {
                let number = text.strip_prefix("cuda:")?;
                let plain = !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit());
                plain.then(|| number.parse().ok().map(Device::Cuda))?
            }
        }
    }

    /// What evaluates a network there; None is the processor.
    fn open(self, network: &Arc<Network>) -> Option<(String, SharedEngine)> {
        let (name, devices) = match self {
            Device::Cpu => return None,
            Device::Auto => ("cuda".to_owned(), cuda_devices()),
            Device::Cuda(number) => match cuda_device(number) {
                Ok(device) => (self.to_string(), vec![device]),
                Err(error) => {
                    log::warn!("{self}: {error}; using the processor instead");
                    return None;
                }
            },
        };
        if devices.is_empty() {
            return None;
        }
        match Reference::new(network.clone(), &devices) {
            Ok(engine) => Some((name, Arc::new(engine))),
            Err(error) => {
                log::warn!("{name}: {error}; using the processor instead");
                None
            }
        }
    }
}

impl Display for Device {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

/// A device that serves until it fails for the first time.
struct Serving {
    name: String,
    engine: Arc<Gather>,
}

/// What evaluates the network of one model. Every engine computes the same, so that each can go on where
/// another one has failed.
pub(super) struct Evaluator {
    /// For the heads, whose products are too small for a device, and for everything if there is no device.
    ///
    /// Those who encode and decode run on many threads already, so that it uses one.
    pub cpu: SharedEngine,
    device: RwLock<Option<Serving>>,
}

impl Evaluator {
    fn new(network: Arc<Network>, device: Option<(String, SharedEngine)>) -> Evaluator {
        let device = device.map(|(name, engine)| Serving {
            name,
            engine: Arc::new(Gather::new(engine)),
        });
        Evaluator {
            cpu: Arc::new(Simd::new(network, 1)),
            device: RwLock::new(device),
        }
    }

    /// The device, if there is one that works.
    pub fn device(&self) -> Option<SharedEngine> {
        let device = self.device.read();
        device.as_ref().map(|d| d.engine.clone() as SharedEngine)
    }

    /// Its name.
    fn device_name(&self) -> Option<String> {
        self.device.read().as_ref().map(|d| d.name.clone())
    }

    /// From now on the processor does what the device did.
    pub fn give_up_device(&self, error: &ModelError) {
        // of several who find out, one tells
        if let Some(device) = self.device.write().take() {
            log::warn!(
                "{} failed: {error}; the processor goes on in its place",
                device.name
            );
        }
    }

    /// Hidden rows of token strings, each a stream of its own.
    ///
    /// # Errors
    /// If a string is not of this network.
    pub fn hidden(&self, strings: &[Vec<u16>]) -> Result<Vec<Vec<i8>>, ModelError> {
        let memory = &Memory::default();
        let sequence = |tokens| Sequence { tokens, memory };
        let sequences: Vec<Sequence> = strings.iter().map(|tokens| sequence(tokens)).collect();
        if let Some(device) = self.device() {
            match device.hidden(&sequences) {
                Err(ModelError::Device(why)) => self.give_up_device(&ModelError::Device(why)),
                other => return other,
            }
        }
        self.cpu.hidden(&sequences)
    }
}

/// The evaluator of a model, and those who decode with it.
#[derive(Clone)]
pub(super) struct Engines {
    pub evaluator: Arc<Evaluator>,
    pub lanes: Arc<Lanes>,
}

/// Bytes for the streams of a model where nothing else is said.
const STREAM_MEMORY: u64 = 128 << 20;

/// One evaluator for every model with a network, made when it is first needed.
pub(super) struct EngineTable {
    pub device: Device,
    /// Threads that decode on the processor.
    pub threads: usize,
    /// Bytes that the streams of a model may take on the processor.
    pub stream_memory: u64,
    /// A leaf; engines are made outside of it.
    made: Mutex<HashMap<ModelHash, Arc<OnceLock<Engines>>>>,
}

impl std::fmt::Debug for EngineTable {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "EngineTable({})", self.device)
    }
}

impl EngineTable {
    pub fn new() -> EngineTable {
        EngineTable {
            device: Device::Cpu,
            threads: 1,
            stream_memory: STREAM_MEMORY,
            made: Mutex::default(),
        }
    }

    /// The engines of a model; `None` if it has no network.
    pub fn of(&self, model: &Model) -> Option<Engines> {
        let network = &model.network()?.network;
        let cell = self.made.lock().entry(model.hash).or_default().clone();
        let engines = cell.get_or_init(|| {
            let device = self.device.open(network);
            if let Some((name, _)) = &device {
                log::info!("the network of model {} runs on {name}", model.info.name);
            }
            self.engines(network, device)
        });
        Some(engines.clone())
    }

    fn engines(&self, network: &Arc<Network>, device: Option<(String, SharedEngine)>) -> Engines {
        let evaluator = Arc::new(Evaluator::new(network.clone(), device));
        Engines {
            lanes: Arc::new(Lanes::new(
                evaluator.clone(),
                self.threads,
                self.stream_memory,
            )),
            evaluator,
        }
    }

    /// Uses this engine as the device of a model.
    pub fn set(&self, model: &Model, name: &str, engine: SharedEngine) {
        if let Some(expert) = model.network() {
            let device = Some((name.to_owned(), engine));
            let engines = OnceLock::from(self.engines(&expert.network, device));
            let old = self.made.lock().insert(model.hash, Arc::new(engines));
            // outside of the lock: it waits for its lanes
            drop(old);
        }
    }

    /// Groups that wait for a lane of any model.
    pub fn waiting(&self) -> usize {
        let made: Vec<_> = self.made.lock().values().cloned().collect();
        let engines = made.iter().filter_map(|cell| cell.get());
        engines.map(|engines| engines.lanes.waiting()).sum()
    }

    /// The device that evaluates a model's network; None is the processor.
    pub fn device_name(&self, model: &Model) -> Option<String> {
        let cell = self.made.lock().get(&model.hash)?.clone();
        cell.get()?.evaluator.device_name()
    }
}

#[cfg(test)]
mod tests {
    use super::Device;

    #[test]
    fn devices_are_read_as_they_are_written() {
        for device in [Device::Auto, Device::Cpu, Device::Cuda(0), Device::Cuda(12)] {
            assert_eq!(Device::parse(&device.to_string()), Some(device));
        }
        assert_eq!(Device::parse("cuda"), Some(Device::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "CUDA"] {
            assert_eq!(Device::parse(text), None, "{text}");
        }
    }
}
