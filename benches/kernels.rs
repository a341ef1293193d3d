//! How long every part takes: `make bench-kernels [FILTER=words]`.
//!
//! Run by `cargo test`, every part runs once and nothing is measured.

mod parts;

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use parts::{Amount, Run};

fn kernels(criterion: &mut Criterion) {
    for part in parts::all() {
        let mut group = criterion.benchmark_group(part.group);
        group.throughput(match part.amount {
            Amount::Bytes(bytes) => Throughput::Bytes(bytes),
            Amount::Elements(elements) => Throughput::Elements(elements),
        });
        let mut prepared: Option<Run> = None;
        group.bench_function(part.name, |bencher| {
            // the closure is called more than once, and not at all if the filter leaves it out
            let run = prepared.get_or_insert_with(&part.prepare);
            bencher.iter(|| black_box(run()));
        });
        group.finish();
    }
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    targets = kernels
}
criterion_main!(all);
