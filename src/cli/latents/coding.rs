//! Extents coded with latents or without, decoded and compared.

use std::time::{Duration, Instant};

use crate::cli::container::in_parallel;
use crate::cli::corpus::Extent;
use crate::codec::{Codecs, Encoded, Grouping, LatentWriter, Latents};
use crate::exit::{Context, Exit, Failure, Outcome};
use crate::train::s2s::writer::Writer;

/// Groups of an extent that are decoded alone to take the time of it.
const SAMPLES: usize = 8;

/// One extent, coded and decoded.
#[derive(Debug, Clone)]
pub struct Coded {
    pub raw_len: usize,
    pub payload_len: usize,
    pub code_len: usize,
    pub latents_len: usize,
    /// What it has been coded with; None if it is smaller without.
    pub latents: Option<Latents>,
    decoding: Duration,
    /// In ms, of groups at equal distances.
    latencies: Vec<f64>,
}

/// A corpus, coded in one way.
#[derive(Debug)]
pub struct Run {
    pub extents: Vec<Coded>,
    /// Wall time of encoding all extents, with writing latents.
    pub encoding: Duration,
}

/// Encodes extents on so many threads, with what `writer` writes where that is smaller. Everything is decoded and
/// compared.
pub fn code(
    codecs: &Codecs,
    writer: Option<&Writer>,
    extents: &[Extent],
    (grouping, threads): (Grouping, usize),
) -> Outcome<Run> {
    let writer = writer.map(|writer| writer as &dyn LatentWriter);
    let begun = Instant::now();
    let encode = |extent: &Extent| codecs.encode_smallest(&extent.raw, grouping, writer);
    let encoded = in_parallel(extents, threads, encode);
    let encoding = begun.elapsed();
    let pairs: Vec<_> = extents.iter().zip(encoded).collect();
    let checked = in_parallel(&pairs, threads, |(extent, encoded)| match encoded {
        Ok((encoded, latents)) => check(codecs, &extent.raw, encoded, latents.as_ref()),
        Err(error) => Err(Failure::failed(format!("encoding: {error}"))),
    });
    let extents = checked.into_iter().collect::<Outcome<_>>()?;
    Ok(Run { extents, encoding })
}

/// Decodes an extent as a whole and in part, and compares.
fn check(
    codecs: &Codecs,
    raw: &[u8],
    encoded: &Encoded,
    latents: Option<&Latents>,
) -> Outcome<Coded> {
    let payload = &encoded.payload;
    let begun = Instant::now();
    let decoded = codecs.decode_all(payload, None).context("decoding")?;
    let decoding = begun.elapsed();
    let layout = codecs.open(payload).context("decoding")?;
    let groups = layout.groups.len();
    let mut latencies = Vec::new();
    let mut same = decoded == raw;
    for sample in 0..SAMPLES.min(groups) {
        let group = sample * groups / SAMPLES.min(groups);
        let begun = Instant::now();
        // opened anew, so that the latents are read each time
        let layout = codecs.open(payload).context("decoding")?;
        let mut bytes = Vec::new();
        let mut sink = |piece: &[u8]| {
            bytes.extend_from_slice(piece);
            true
        };
        let done = codecs.decode_group(payload, &layout, group, None, &mut sink);
        done.context("decoding")?;
        latencies.push(begun.elapsed().as_secs_f64() * 1e3);
        let range = &layout.groups[group];
        same &= bytes == raw[range.start as usize..range.end as usize];
    }
    if !same {
        return Err(Failure::new(Exit::Damaged, "it decodes to other bytes"));
    }
    Ok(Coded {
        raw_len: raw.len(),
        payload_len: payload.len(),
        code_len: layout.code_bytes(),
        latents_len: layout.latent_bytes(),
        latents: latents.cloned(),
        decoding,
        latencies,
    })
}

impl Run {
    /// Each extent as it is smaller here or there; encoding takes the time of both.
    pub fn smaller(&self, other: &Run) -> Run {
        let pairs = self.extents.iter().zip(&other.extents);
        let smaller = |(here, there): (&Coded, &Coded)| match there.payload_len < here.payload_len {
            true => there.clone(),
            false => here.clone(),
        };
        Run {
            extents: pairs.map(smaller).collect(),
            encoding: self.encoding + other.encoding,
        }
    }

    /// Time that decoding took, all extents together.
    pub fn decoding(&self) -> Duration {
        self.extents.iter().map(|coded| coded.decoding).sum()
    }

    /// How long groups took to decode alone, in ms, ascending.
    pub fn latencies(&self) -> Vec<f64> {
        let all = self.extents.iter().flat_map(|coded| &coded.latencies);
        let mut all: Vec<f64> = all.copied().collect();
        all.sort_by(f64::total_cmp);
        all
    }
}
