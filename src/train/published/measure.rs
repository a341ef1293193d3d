//! What it would cost to code data by a published model: its own bits, without a mixer beside it.

use candle_core::{D, Device, Tensor};
use candle_nn::ops::log_softmax;

use super::{CandleT5, Checkpoint, Encoded, Result};

/// Pieces of a chunk. Chunks know nothing of each other.
pub const CHUNK: usize = 128;
/// Chunks that are computed together.
const BATCH: usize = 16;

/// What was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Measured {
    /// Of the data itself.
    pub bytes: u64,
    pub pieces: u64,
    /// Pieces that stand for something the vocabulary lacks.
    pub unknown: u64,
    /// Cost of all pieces.
    pub bits: f64,
}

impl Measured {
    /// Adds what was measured elsewhere.
    pub fn add(&mut self, other: Measured) {
        self.bytes += other.bytes;
        self.pieces += other.pieces;
        self.unknown += other.unknown;
        self.bits += other.bits;
    }

    /// Bits for each byte of the data.
    pub fn bits_per_byte(&self) -> f64 {
        self.bits / self.bytes.max(1) as f64
    }
}

/// Codes `data` in chunks of [`CHUNK`] pieces, the encoder reading nothing but the end of a text. Calls
/// `progress` with the number of bytes done so far, and the bits that they cost.
///
/// # Errors
/// If the tokenizer or the device fails.
pub fn measure(
    checkpoint: &Checkpoint,
    model: &mut CandleT5,
    data: &[u8],
    progress: &mut dyn FnMut(u64, f64),
) -> Result<Measured> {
    let Encoded { ids, unknown } = checkpoint.pieces.encode(data)?;
    let chunks: Vec<&[u32]> = ids.chunks(CHUNK).collect();
    let (mut nats, mut done) = (0f64, 0);
    for batch in chunks.chunks(BATCH) {
        nats += cost(checkpoint, model, batch)?;
        done += batch.iter().map(|chunk| chunk.len()).sum::<usize>();
        let bytes = data.len() as u128 * done as u128 / ids.len() as u128;
        progress(bytes as u64, nats / std::f64::consts::LN_2);
    }
    Ok(Measured {
        bytes: data.len() as u64,
        pieces: ids.len() as u64,
        unknown: unknown as u64,
        bits: nats / std::f64::consts::LN_2,
    })
}

/// Cost in nats of some chunks, of which the first is the longest.
fn cost(checkpoint: &Checkpoint, model: &mut CandleT5, chunks: &[&[u32]]) -> Result<f64> {
    let config = &checkpoint.config;
    let device = &checkpoint.device;
    let memory = model.encode(&Tensor::new(&[[config.end]], device)?)?;
    let memory = memory.repeat((chunks.len(), 1, 1))?;
    model.restart();
    let mut nats = 0.0;
    let mut inputs = vec![config.start; chunks.len()];
    for position in 0..chunks.first().map_or(0, |chunk| chunk.len()) {
        let logits = model.step(&column(&inputs, device)?, &memory)?;
        // what stands behind the end of a shorter chunk is not counted
        inputs = chunks
            .iter()
            .map(|chunk| chunk.get(position).copied().unwrap_or(config.end))
            .collect();
        let costs = log_softmax(&logits, D::Minus1)?.gather(&column(&inputs, device)?, 1)?;
        let costs = costs.flatten_all()?.to_vec1::<f32>()?;
        let counted = chunks.iter().zip(costs);
        nats -= counted
            .filter(|(chunk, _)| position < chunk.len())
            .map(|(_, cost)| f64::from(cost))
            .sum::<f64>();
    }
    Ok(nats)
}

fn column(ids: &[u32], device: &Device) -> Result<Tensor> {
    Ok(Tensor::new(ids, device)?.unsqueeze(1)?)
}
