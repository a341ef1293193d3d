//! `s2sfs bench-latents`: what latents are worth, in real bytes, for each class of a corpus.

mod coding;
mod usage;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;

use super::container::in_parallel;
use super::corpus::{CorpusArguments, Extent};
use super::models::codecs_of;
use super::output::{self, megabytes_per_second};
use super::peers::{self, PeerRow};
use crate::codec::{Codecs, Grouping};
use crate::control::ratio;
use crate::exit::{Context, Failure, Outcome};
use crate::train::s2s::recipe::Purpose;
use crate::train::s2s::writer::Writer;
use coding::{Coded, Run};
use usage::{Example, Usage};

/// Tokens of a chunk as the published experiments have them, and bytes of a group as mounts have them.
const CHUNKS: [usize; 4] = [16, 32, 64, 128];
const GROUP: usize = 16 << 10;

#[derive(Debug, Args)]
pub struct LatentsArguments {
    #[command(flatten)]
    corpus: CorpusArguments,
    /// Model whose network reads latents
    #[arg(long, value_name = "NAME|FILE")]
    model: PathBuf,
    /// What no latents are compared by: the same architecture, trained equally long without any [default: the model]
    #[arg(long, value_name = "NAME|FILE")]
    without: Option<PathBuf>,
    /// Compressor that writes latents for all groups of an extent
    #[arg(long, value_name = "DIR")]
    compressor: Option<PathBuf>,
    /// Compressor that writes latents for each group
    #[arg(long, value_name = "DIR")]
    own: Option<PathBuf>,
    /// Tokens of groups that are one chunk, 1 to 128 [default: 16,32,64,128, unless there is --group]
    #[arg(long, value_name = "N,...", value_delimiter = ',',
          value_parser = RangedU64ValueParser::<usize>::new().range(1..=128))]
    chunk: Vec<usize>,
    /// Bytes of groups of whole chunks [default: 16384, unless there is --chunk]
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    group: Vec<usize>,
    /// Strings of latents that are tried for an extent: what the rule tells, the likeliest, and others drawn by chance
    #[arg(long, value_name = "K", default_value_t = 2)]
    samples: usize,
    /// Show what this many of the most used latents go with
    #[arg(long, value_name = "N", default_value_t = 0)]
    examples: usize,
    /// Run gzip, xz, zstd, brotli and zpaq on the same bytes, too
    #[arg(long)]
    peers: bool,
    /// Extents that are coded at the same time
    #[arg(long, value_name = "N", default_value_t = 1)]
    threads: usize,
    /// Machine-readable output
    #[arg(long)]
    json: bool,
}

/// A way of coding: which latents an extent may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    /// None, by the model of `--without`, or by the model itself.
    None,
    /// None, by the model itself, where the other one is of `--without`.
    Empty,
    /// One string for each group, or none.
    Own,
    /// One string for all groups, or none.
    Shared,
    /// Whatever is smaller of the two.
    Best,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::None => "none",
            Way::Empty => "empty",
            Way::Own => "own",
            Way::Shared => "shared",
            Way::Best => "best",
        }
    }
}

/// One way on one class.
#[derive(Debug, Serialize)]
struct Row {
    class: String,
    groups: String,
    latents: Way,
    raw_bytes: u64,
    tokens: u64,
    /// All that is stored: code, latents, and headers with checksums.
    payload_bytes: u64,
    code_bytes: u64,
    latent_bytes: u64,
    header_bytes: u64,
    ratio: f64,
    /// Size against that without latents.
    of_none: f64,
    extents: u64,
    /// Share of the extents that kept latents, and of these the strings that are not empty.
    kept: f64,
    strings: u64,
    latents_per_string: f64,
    bits_per_latent: f64,
    distinct: usize,
    /// Of the latents in use, in bits.
    entropy: f64,
    /// Decoding one group alone, from the header on.
    decode_ms_median: f64,
    decode_ms_p99: f64,
    /// By all threads together, writing latents and trying them included.
    encode_tokens_per_second: f64,
    /// By one thread.
    decode_mb_per_second: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: Vec<Row>,
    examples: Vec<Example>,
    peers: Vec<PeerRow>,
}

/// The models and the compressors.
struct Bench {
    model: Codecs,
    without: Option<Codecs>,
    own: Option<Writer>,
    shared: Option<Writer>,
    threads: usize,
}

/// How latents were used in each way, all classes together.
type Usages = BTreeMap<(String, Way), Usage>;

pub fn run(arguments: &LatentsArguments) -> Outcome<()> {
    let bench = Bench::new(arguments)?;
    let groupings = groupings(arguments);
    let classes = arguments.corpus.classes()?;
    let bar = output::share_bar((classes.len() * groupings.len()) as u64);
    let (mut rows, mut peers, mut usages) = (Vec::new(), Vec::new(), Usages::new());
    for class in &classes {
        let extents = arguments.corpus.extents(class, false)?;
        for &grouping in &groupings {
            bar.set_message(class.name.clone());
            rows.extend(bench.rows(&class.name, &extents, grouping, &mut usages)?);
            bar.inc(1);
        }
        if arguments.peers {
            let all: Vec<u8> = extents.iter().flat_map(|e| &e.raw).copied().collect();
            peers.extend(peers::measure(&class.name, &all)?);
        }
    }
    bar.finish_and_clear();
    let report = Report {
        rows,
        examples: examples(&bench.model, &usages, arguments.examples)?,
        peers,
    };
    match arguments.json {
        true => output::print_json(&report),
        false => output::print(&text(&report)),
    }
}

fn groupings(arguments: &LatentsArguments) -> Vec<Grouping> {
    let neither = arguments.chunk.is_empty() && arguments.group.is_empty();
    let (chunks, groups): (&[usize], &[usize]) = match neither {
        true => (&CHUNKS, &[GROUP]),
        false => (&arguments.chunk, &arguments.group),
    };
    let chunks = chunks.iter().map(|&tokens| Grouping::Tokens(tokens));
    let groups = groups.iter().map(|&bytes| Grouping::Bytes(bytes));
    chunks.chain(groups).collect()
}

fn name_of(grouping: Grouping) -> String {
    match grouping {
        Grouping::Tokens(tokens) => format!("{tokens} tokens"),
        Grouping::Bytes(bytes) => format!("{bytes} bytes"),
    }
}

impl Bench {
    fn new(arguments: &LatentsArguments) -> Outcome<Bench> {
        let model = codecs_of(&arguments.model)?;
        let writer = |dir: &Option<PathBuf>, purpose| match dir {
            None => Ok(None),
            Some(dir) => writer(&model, dir, purpose, arguments.samples).map(Some),
        };
        let own = writer(&arguments.own, Purpose::Chunk)?;
        let shared = writer(&arguments.compressor, Purpose::Extent)?;
        if own.is_none() && shared.is_none() {
            return Err(Failure::usage("give --compressor or --own, or both"));
        }
        Ok(Bench {
            without: arguments.without.as_deref().map(codecs_of).transpose()?,
            model,
            own,
            shared,
            threads: arguments.threads,
        })
    }

    /// All ways of coding a class in groups.
    fn rows(
        &self,
        class: &str,
        extents: &[Extent],
        grouping: Grouping,
        usages: &mut Usages,
    ) -> Outcome<Vec<Row>> {
        let tokens = |extent: &Extent| self.model.group_tokens(&extent.raw, grouping);
        let tokens = in_parallel(extents, self.threads, tokens);
        let tokens: Vec<_> = tokens
            .into_iter()
            .collect::<Result<_, _>>()
            .context(class)?;
        let mut rows: Vec<Row> = Vec::new();
        for (way, run) in self.runs(extents, grouping)? {
            let mut used = Usage::default();
            let of_all = usages.entry((name_of(grouping), way)).or_default();
            for (coded, groups) in run.extents.iter().zip(&tokens) {
                used.add(groups, coded.latents.as_ref());
                of_all.add(groups, coded.latents.as_ref());
            }
            let mut row = row(&run, &used);
            row.class = class.to_owned();
            row.groups = name_of(grouping);
            row.latents = way;
            row.tokens = tokens
                .iter()
                .flatten()
                .map(|group| group.len() as u64)
                .sum();
            row.encode_tokens_per_second = row.tokens as f64 / run.encoding.as_secs_f64().max(1e-9);
            let none = rows
                .first()
                .map_or(row.payload_bytes, |none| none.payload_bytes);
            row.of_none = ratio(row.payload_bytes, none);
            rows.push(row);
        }
        Ok(rows)
    }

    /// Codes in all ways; the first has no latents.
    fn runs(&self, extents: &[Extent], grouping: Grouping) -> Outcome<Vec<(Way, Run)>> {
        let code = |codecs, writer: Option<&Writer>| {
            coding::code(codecs, writer, extents, (grouping, self.threads))
        };
        let mut runs = Vec::new();
        if let Some(without) = &self.without {
            runs.push((Way::None, code(without, None)?));
        }
        let empty = if runs.is_empty() {
            Way::None
        } else {
            Way::Empty
        };
        runs.push((empty, code(&self.model, None)?));
        let own = self
            .own
            .as_ref()
            .map(|writer| code(&self.model, Some(writer)));
        let shared = self
            .shared
            .as_ref()
            .map(|writer| code(&self.model, Some(writer)));
        let (own, shared) = (own.transpose()?, shared.transpose()?);
        let best = own.as_ref().zip(shared.as_ref());
        let best = best.map(|(own, shared)| own.smaller(shared));
        let ways = [(Way::Own, own), (Way::Shared, shared), (Way::Best, best)];
        runs.extend(ways.into_iter().filter_map(|(way, run)| Some((way, run?))));
        Ok(runs)
    }
}

/// The compressor in a directory, if the model reads what it writes.
fn writer(model: &Codecs, dir: &Path, purpose: Purpose, samples: usize) -> Outcome<Writer> {
    let writer = Writer::load(dir, purpose, samples).context("compressor")?;
    match model.reads(&writer) {
        true => Ok(writer),
        false => Err(crate::mount::unreadable(dir)),
    }
}

/// The figures of a run that follow from the run alone.
fn row(run: &Run, used: &Usage) -> Row {
    let sum = |of: fn(&Coded) -> usize| run.extents.iter().map(of).sum::<usize>() as u64;
    let raw_bytes = sum(|coded| coded.raw_len);
    let payload_bytes = sum(|coded| coded.payload_len);
    let (code_bytes, latent_bytes) = (sum(|coded| coded.code_len), sum(|coded| coded.latents_len));
    let kept = sum(|coded| usize::from(coded.latents.is_some()));
    let extents = run.extents.len() as u64;
    let latency = run.latencies();
    Row {
        class: String::new(),
        groups: String::new(),
        latents: Way::None,
        raw_bytes,
        tokens: 0,
        payload_bytes,
        code_bytes,
        latent_bytes,
        header_bytes: payload_bytes - code_bytes - latent_bytes,
        ratio: ratio(raw_bytes, payload_bytes),
        of_none: 1.0,
        extents,
        kept: ratio(kept, extents),
        strings: used.strings(),
        latents_per_string: ratio(used.latents(), used.strings()),
        bits_per_latent: ratio(8 * latent_bytes, used.latents()),
        distinct: used.distinct(),
        entropy: used.entropy(),
        decode_ms_median: output::percentile(&latency, 50),
        decode_ms_p99: output::percentile(&latency, 99),
        encode_tokens_per_second: 0.0,
        decode_mb_per_second: megabytes_per_second(raw_bytes, run.decoding()),
    }
}

/// What the most used latents of each way go with.
fn examples(model: &Codecs, usages: &Usages, most: usize) -> Outcome<Vec<Example>> {
    let model = model.encoding_model();
    let Some(expert) = model.as_ref().and_then(|model| model.network()) else {
        return Ok(vec![]);
    };
    // what is best is one of the others
    let ways = usages.iter().filter(|((_, way), _)| *way != Way::Best);
    let of_way = |((groups, way), usage): (&(String, Way), &Usage)| {
        usage.examples(groups, way.name(), most, |token| {
            expert.vocabulary.token(token)
        })
    };
    Ok(ways.flat_map(of_way).collect())
}

fn text(report: &Report) -> String {
    let mut text = table(&report.rows);
    if !report.examples.is_empty() {
        text += &format!("\n{}", usage::table(&report.examples));
    }
    if !report.peers.is_empty() {
        text += &format!("\n{}", peers::table(&report.peers));
    }
    text
}

fn table(rows: &[Row]) -> String {
    let head = [
        "class",
        "groups",
        "latents",
        "bytes",
        "coded",
        "code",
        "latents",
        "headers",
        "ratio",
        "of none",
        "kept",
        "a string",
        "bits each",
        "distinct",
        "entropy",
        "decode ms",
        "p99 ms",
        "enc tokens/s",
        "dec MB/s",
    ];
    let cells = |row: &Row| {
        [
            row.class.clone(),
            row.groups.clone(),
            row.latents.name().to_owned(),
            row.raw_bytes.to_string(),
            row.payload_bytes.to_string(),
            row.code_bytes.to_string(),
            row.latent_bytes.to_string(),
            row.header_bytes.to_string(),
            format!("{:.3}", row.ratio),
            format!("{:.4}", row.of_none),
            format!("{:.0} %", 100.0 * row.kept),
            format!("{:.1}", row.latents_per_string),
            format!("{:.1}", row.bits_per_latent),
            row.distinct.to_string(),
            format!("{:.2}", row.entropy),
            format!("{:.1}", row.decode_ms_median),
            format!("{:.1}", row.decode_ms_p99),
            format!("{:.0}", row.encode_tokens_per_second),
            format!("{:.4}", row.decode_mb_per_second),
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    output::table(head, 3, &rows)
}
