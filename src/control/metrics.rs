//! Status figures as Prometheus metrics, in the OpenMetrics text format.
//!
//! The table [`METRICS`] makes the exposition and docs/metrics.md.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::{CodecUsage, Latency, ScrubState, Status};

/// Of what [`exposition`] makes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const MICROS_PER_SECOND: f64 = 1e6;
/// Histograms have bounds at these powers of two of microseconds: 1 us to 17 min.
const FIRST_BOUND: u32 = 0;
const LAST_BOUND: u32 = 30;

/// Where the figures of a metric come from.
enum Figure {
    Integer(fn(&Status) -> u64),
    Real(fn(&Status) -> f64),
    /// One for each codec, with the label `codec`.
    OfCodecs(fn(&CodecUsage) -> u64),
    /// One for each kind of work, with the label `operation`.
    Latencies,
    /// Always 1, with labels that name the program, the store and the model.
    Info,
}

/// One metric.
struct Metric {
    /// Without what the format appends: `_total` to counters, `_bucket` and so on to histograms.
    name: &'static str,
    counter: bool,
    help: &'static str,
    figure: Figure,
}

const fn gauge(name: &'static str, help: &'static str, figure: Figure) -> Metric {
    Metric {
        name,
        counter: false,
        help,
        figure,
    }
}

const fn counter(name: &'static str, help: &'static str, figure: Figure) -> Metric {
    Metric {
        name,
        counter: true,
        help,
        figure,
    }
}

use Figure::{Info, Integer, Latencies, OfCodecs, Real};

/// All metrics, in the order of the exposition.
const METRICS: &[Metric] = &[
    gauge(
        "s2sfs_build",
        "Version of the program, path and uuid of the store, and the model that encodes",
        Info,
    ),
    gauge(
        "s2sfs_uptime_seconds",
        "Time since the mount",
        Real(|s| s.uptime_seconds),
    ),
    gauge(
        "s2sfs_read_only",
        "1 if the mount is read-only",
        Integer(|s| s.read_only.into()),
    ),
    gauge(
        "s2sfs_failed",
        "1 if the store refuses changes after a failure",
        Integer(|s| s.failed.is_some().into()),
    ),
    gauge("s2sfs_files", "Files", Integer(|s| s.files)),
    gauge(
        "s2sfs_directories",
        "Directories",
        Integer(|s| s.directories),
    ),
    gauge(
        "s2sfs_logical_bytes",
        "Contents of all files without holes",
        Integer(|s| s.logical_bytes),
    ),
    gauge(
        "s2sfs_stored_bytes",
        "Disk space of the store without models",
        Integer(|s| s.stored_bytes),
    ),
    gauge(
        "s2sfs_model_bytes",
        "Disk space of the models in the store",
        Integer(|s| s.model_bytes),
    ),
    gauge(
        "s2sfs_log_bytes",
        "Length of the log",
        Integer(|s| s.log_bytes),
    ),
    gauge(
        "s2sfs_dead_bytes",
        "Part of the log that can be reclaimed",
        Integer(|s| s.dead_bytes),
    ),
    gauge(
        "s2sfs_index_bytes",
        "Disk space of the index",
        Integer(|s| s.index_bytes),
    ),
    gauge(
        "s2sfs_free_bytes",
        "Free space of the disk that holds the store",
        Integer(|s| s.free_bytes),
    ),
    gauge(
        "s2sfs_ratio",
        "Logical bytes by stored bytes",
        Real(|s| s.ratio),
    ),
    gauge(
        "s2sfs_staged_bytes",
        "Stored bytes that wait for settling",
        Integer(|s| s.staged_bytes),
    ),
    gauge(
        "s2sfs_dirty_bytes",
        "Written bytes that are not in the log yet",
        Integer(|s| s.dirty_bytes),
    ),
    gauge(
        "s2sfs_settle_queue_extents",
        "Extents that wait for settling",
        Integer(|s| s.settle.queue_length),
    ),
    gauge(
        "s2sfs_settle_queue_bytes",
        "Logical bytes that wait for settling",
        Integer(|s| s.settle.queue_bytes),
    ),
    counter(
        "s2sfs_settled_bytes",
        "Logical bytes that were settled",
        Integer(|s| s.settle.settled_bytes),
    ),
    gauge(
        "s2sfs_codec_extents",
        "Extents by the codec of their blocks",
        OfCodecs(|c| c.extents),
    ),
    gauge(
        "s2sfs_codec_logical_bytes",
        "Logical bytes by codec",
        OfCodecs(|c| c.logical_bytes),
    ),
    gauge(
        "s2sfs_codec_stored_bytes",
        "Payload bytes of blocks by codec",
        OfCodecs(|c| c.stored_bytes),
    ),
    gauge(
        "s2sfs_cache_bytes",
        "Memory that the cache of decoded data takes",
        Integer(|s| s.cache.bytes),
    ),
    gauge(
        "s2sfs_cache_limit_bytes",
        "Memory that the cache may take",
        Integer(|s| s.cache.limit_bytes),
    ),
    counter(
        "s2sfs_cache_hits",
        "Look-ups of the cache that found their data",
        Integer(|s| s.cache.hits),
    ),
    counter(
        "s2sfs_cache_misses",
        "Look-ups of the cache that did not",
        Integer(|s| s.cache.misses),
    ),
    counter(
        "s2sfs_read_bytes",
        "Bytes that applications read",
        Integer(|s| s.io.read_bytes),
    ),
    counter(
        "s2sfs_written_bytes",
        "Bytes that applications wrote",
        Integer(|s| s.io.written_bytes),
    ),
    counter(
        "s2sfs_decoded_bytes",
        "Bytes that went through a decoder",
        Integer(|s| s.io.decoded_bytes),
    ),
    gauge(
        "s2sfs_latency_seconds",
        "Histogram of the times of read_cached, read_decoded, write, fsync and settle_batch",
        Latencies,
    ),
    counter(
        "s2sfs_io_errors",
        "Requests that failed with EIO, for damage or an error of the disk",
        Integer(|s| s.errors.io),
    ),
    counter(
        "s2sfs_no_space_errors",
        "Requests that failed because the disk is full",
        Integer(|s| s.errors.no_space),
    ),
    counter(
        "s2sfs_settle_errors",
        "Failures of settling, which is tried again",
        Integer(|s| s.errors.settle),
    ),
    gauge(
        "s2sfs_scrub_running",
        "1 while a scrub is running",
        Integer(|s| (s.scrub.state == ScrubState::Running).into()),
    ),
    gauge(
        "s2sfs_scrub_done_bytes",
        "Bytes that the present or last scrub has verified",
        Integer(|s| s.scrub.done_bytes),
    ),
    gauge(
        "s2sfs_scrub_total_bytes",
        "Bytes that it is to verify",
        Integer(|s| s.scrub.total_bytes),
    ),
    gauge(
        "s2sfs_scrub_errors",
        "Damaged places that it has found",
        Integer(|s| s.scrub.errors),
    ),
    gauge(
        "s2sfs_scrub_last_completed_seconds",
        "When a scrub last came to its end, in seconds since 1970, or 0",
        Integer(|s| s.scrub.last_completed.unwrap_or(0)),
    ),
    gauge(
        "s2sfs_scrub_last_errors",
        "Damaged places that the last complete scrub found",
        Integer(|s| s.scrub.last_errors),
    ),
    gauge(
        "s2sfs_reclaim_running",
        "1 while space is reclaimed",
        Integer(|s| s.reclaim.running.into()),
    ),
    counter(
        "s2sfs_reclaimed_bytes",
        "Bytes given back to the disk",
        Integer(|s| s.reclaim.freed_bytes),
    ),
    counter(
        "s2sfs_reclaim_copied_bytes",
        "Live bytes copied for that",
        Integer(|s| s.reclaim.copied_bytes),
    ),
];

impl Metric {
    /// The type in the words of the format.
    fn metric_type(&self) -> MetricType {
        match self.figure {
            Latencies => MetricType::Histogram,
            Info => MetricType::Info,
            _ if self.counter => MetricType::Counter,
            _ => MetricType::Gauge,
        }
    }

    /// The name of its samples, and its labels.
    fn sample_name(&self) -> String {
        match self.figure {
            Latencies => format!("{}_bucket, _sum, _count{{operation}}", self.name),
            Info => format!("{}_info{{version, store, uuid, model, engine}}", self.name),
            OfCodecs(_) => format!("{}{{codec}}", self.name),
            _ if self.counter => format!("{}_total", self.name),
            _ => self.name.to_owned(),
        }
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>, status: &Status) -> fmt::Result {
        let kind = self.metric_type();
        let mut samples = encoder.encode_descriptor(self.name, self.help, None, kind)?;
        match self.figure {
            Integer(figure) if self.counter => {
                samples.encode_counter::<NoLabelSet, _, u64>(&figure(status), None)
            }
            Integer(figure) => samples.encode_gauge(&figure(status)),
            Real(figure) => samples.encode_gauge(&figure(status)),
            OfCodecs(figure) => status.codecs.iter().try_for_each(|(name, usage)| {
                let labels = [("codec", name.as_str())];
                samples.encode_family(&labels)?.encode_gauge(&figure(usage))
            }),
            Latencies => status.latency.all().iter().try_for_each(|(name, latency)| {
                let labels = [("operation", *name)];
                let sum = latency.sum_micros as f64 / MICROS_PER_SECOND;
                let buckets = bounded(latency);
                samples
                    .encode_family(&labels)?
                    .encode_histogram::<NoLabelSet>(sum, latency.count, &buckets, None)
            }),
            Info => samples.encode_info(&[
                ("version", status.version.as_str()),
                ("store", status.store.as_str()),
                ("uuid", status.uuid.as_str()),
                ("model", status.model.as_str()),
                ("engine", status.engine.as_str()),
            ]),
        }
    }
}

/// The buckets of a histogram with bounds that are the same at every scrape, in seconds.
fn bounded(latency: &Latency) -> Vec<(f64, u64)> {
    let mut found = latency.buckets.iter().peekable();
    let mut buckets = Vec::new();
    for power in FIRST_BOUND..=LAST_BOUND {
        let bound = 1 << power;
        let mut count = 0;
        while let Some((_, more)) = found.next_if(|(end, _)| *end <= bound) {
            count += more;
        }
        buckets.push((bound as f64 / MICROS_PER_SECOND, count));
    }
    buckets.push((f64::INFINITY, found.map(|(_, count)| count).sum()));
    buckets
}

#[derive(Debug)]
struct Snapshot(Status);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut encode = |metric: &Metric| metric.encode(&mut encoder, &self.0);
        METRICS.iter().try_for_each(&mut encode)
    }
}

/// The figures in the OpenMetrics text format.
///
/// # Errors
/// If the library cannot encode them.
pub fn exposition(status: Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot(status)));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

/// All metrics as a Markdown table.
pub fn table() -> String {
    let mut table = String::from("| metric | type | meaning |\n| --- | --- | --- |\n");
    for metric in METRICS {
        table.push_str(&format!(
            "| `{}` | {} | {} |\n",
            metric.sample_name(),
            metric.metric_type().as_str(),
            metric.help
        ));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::Histogram;
    use std::time::Duration;

    fn status() -> Status {
        let histogram = Histogram::default();
        for micros in [0, 1, 3, 1000, 5_000_000_000] {
            histogram.record(Duration::from_micros(micros));
        }
        let mut status = Status {
            store: "/a \"quoted\"\nname".into(),
            ratio: 2.5,
            ..Status::default()
        };
        status.latency.write = histogram.times().into();
        status.io.read_bytes = 7;
        let usage = CodecUsage {
            extents: 4,
            ..CodecUsage::default()
        };
        status.codecs.insert("zstd".into(), usage);
        status
    }

    #[test]
    fn figures_are_exposed_with_types_and_labels() {
        let text = exposition(status()).unwrap();
        for line in [
            "# TYPE s2sfs_read_bytes counter",
            "s2sfs_read_bytes_total 7",
            "s2sfs_ratio 2.5",
            "s2sfs_codec_extents{codec=\"zstd\"} 4",
            "s2sfs_latency_seconds_count{operation=\"write\"} 5",
            "s2sfs_latency_seconds_sum{operation=\"write\"} 5000.001004",
            "s2sfs_latency_seconds_bucket{le=\"0.000002\",operation=\"write\"} 2",
            "s2sfs_latency_seconds_bucket{le=\"0.000004\",operation=\"write\"} 3",
            "s2sfs_latency_seconds_bucket{le=\"1073.741824\",operation=\"write\"} 4",
            "s2sfs_latency_seconds_bucket{le=\"+Inf\",operation=\"write\"} 5",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        assert!(
            text.contains("store=\"/a \\\"quoted\\\"\\nname\""),
            "{text}"
        );
    }

    #[test]
    fn metrics_have_one_name_each_in_the_manner_of_the_format() {
        let mut names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        for metric in METRICS {
            assert!(metric.name.starts_with("s2sfs_"), "{}", metric.name);
            assert!(!metric.name.ends_with("_total"), "{}", metric.name);
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            assert!(metric.name.chars().all(plain));
            assert!(!metric.help.contains(['\n', '|', '\\']));
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), METRICS.len());
    }
}
