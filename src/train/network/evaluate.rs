//! What held-out data costs.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use super::NetworkError;
use super::export::{HALVINGS, LOGIT_UNIT, export_halved};
use super::float::{FloatNetwork, Sample};
use super::fused::{self, Fused};
use super::optimiser::derived;
use crate::model::network::simd::Simd;
use crate::model::network::{Engine, Network, Sequence};

/// Computes costs and gradients on a device.
#[derive(Debug)]
pub enum Computer {
    /// On the processor, by hand.
    Fused(Fused),
    /// With candle, on any device.
    Candle,
}

impl Computer {
    /// The fastest one for a network on this device.
    pub fn new(network: &FloatNetwork, device: &Device, threads: usize) -> Computer {
        match device.is_cpu() && fused::supports(&network.config) {
            true => Computer::Fused(Fused::new(threads)),
            false => Computer::Candle,
        }
    }

    /// Mean cost of a token in nats and its gradients, in the order of [`FloatNetwork::parameters`].
    pub fn gradients(
        &mut self,
        network: &FloatNetwork,
        samples: &[Sample],
    ) -> Result<(f64, Vec<Tensor>), NetworkError> {
        match self {
            Computer::Fused(fused) => Ok(fused.gradients(network, samples)?),
            Computer::Candle => {
                let loss = network.loss(samples)?;
                let gradients = derived(&loss, &network.parameters())?;
                Ok((f64::from(loss.to_scalar::<f32>()?), gradients))
            }
        }
    }

    /// Total cost in nats.
    pub fn cost(
        &mut self,
        network: &FloatNetwork,
        samples: &[Sample],
    ) -> Result<f64, NetworkError> {
        Ok(self.costs(network, samples)?.iter().sum())
    }

    /// Cost of each sample in nats.
    pub fn costs(
        &mut self,
        network: &FloatNetwork,
        samples: &[Sample],
    ) -> Result<Vec<f64>, NetworkError> {
        match self {
            Computer::Fused(fused) => Ok(fused.costs(network, samples)?),
            Computer::Candle => Ok(network.costs(samples)?),
        }
    }
}

/// The exact network of a trained one, in the units in which it costs least on `samples`, and that cost in nats:
/// training does not clip the residual stream, so the range that it needs shows only here.
///
/// # Errors
/// As for [`exact_cost`].
pub fn best_export(
    network: &FloatNetwork,
    samples: &[Sample],
    threads: usize,
) -> Result<(Arc<Network>, f64), NetworkError> {
    let try_out = |halvings: u32| {
        let exact = Arc::new(export_halved(network, halvings)?);
        let cost = exact_cost(&Simd::new(exact.clone(), threads), &exact, samples)?;
        Ok::<_, NetworkError>((exact, cost))
    };
    let mut best = try_out(0)?;
    for halvings in 1..=HALVINGS {
        let other = try_out(halvings)?;
        if other.1 < best.1 {
            best = other;
        }
    }
    Ok(best)
}

/// Total cost in nats by the logits of an exact network.
///
/// # Errors
/// If a token or a latent is not of the network, or the device fails.
pub fn exact_cost(
    engine: &dyn Engine,
    network: &Network,
    samples: &[Sample],
) -> Result<f64, NetworkError> {
    let config = network.config();
    let latents: Vec<&[u16]> = samples.iter().map(|sample| sample.latents).collect();
    let memories = engine.encode(&latents)?;
    let asked: Vec<Sequence> = samples
        .iter()
        .zip(&memories)
        .map(|(&Sample { tokens, .. }, memory)| Sequence { tokens, memory })
        .collect();
    let rows = engine.hidden(&asked)?;
    let mut cost = 0f64;
    for (rows, sample) in rows.iter().zip(samples) {
        let classes = engine.class_logits(rows)?;
        let by_token = rows
            .chunks_exact(config.d_model)
            .zip(classes.chunks_exact(config.classes.len()));
        for ((row, classes), &token) in by_token.zip(sample.tokens) {
            let class = config.classes.partition_point(|&first| first <= token) - 1;
            let members = engine.token_logits(row, class)?;
            let member = usize::from(token - config.classes[class]);
            cost += nats(classes, class) + nats(&members, member);
        }
    }
    Ok(cost)
}

/// Cost of choosing `chosen` by exact logits.
fn nats(logits: &[i32], chosen: usize) -> f64 {
    let of = |logit: i32| f64::from(logit) / LOGIT_UNIT;
    let most = logits.iter().copied().max().map_or(0.0, of);
    let total: f64 = logits.iter().map(|&logit| (of(logit) - most).exp()).sum();
    total.ln() + most - of(logits[chosen])
}
