//! How many instructions every part takes: `make bench-instructions [FILTER=words]`.
//!
//! The processor counts them where it can be asked; virtual machines often do not let it. Without, the program ends
//! with code 3, and scripts/bench-instructions.sh runs it again with `--callgrind` under valgrind, which counts what
//! `counted` executes and writes a file for each part.

mod parts;

use std::hint::black_box;
use std::process::ExitCode;

use parts::{Amount, Part, Run};

/// Ends the program when nothing counts.
const NO_COUNTER: u8 = 3;

/// What is counted. Never inlined: valgrind knows it by its name.
#[inline(never)]
fn counted(run: &mut Run) -> u64 {
    black_box(run())
}

#[cfg(target_os = "linux")]
fn counter() -> Result<perf_event::Counter, String> {
    let mut builder = perf_event::Builder::new(perf_event::events::Hardware::INSTRUCTIONS);
    builder.exclude_kernel(true).exclude_hv(true);
    builder.build().map_err(|error| error.to_string())
}

#[cfg(target_os = "linux")]
fn count(counter: &mut perf_event::Counter, run: &mut Run) -> std::io::Result<u64> {
    counter.reset()?;
    counter.enable()?;
    counted(run);
    counter.disable()?;
    counter.read()
}

fn describe(part: &Part) -> String {
    let (amount, unit) = match part.amount {
        Amount::Bytes(amount) => (amount, "byte"),
        Amount::Elements(amount) => (amount, "element"),
    };
    format!("{}: {}\t{amount}\t{unit}", part.group, part.name)
}

/// One line for each part: its name, amount and unit, and the instructions if they are known, with tabs between.
fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let callgrind = arguments.iter().any(|argument| argument == "--callgrind");
    // `cargo bench` passes --bench; run by `cargo test` it must not take its time
    let asked = callgrind || arguments.iter().any(|argument| argument == "--bench");
    if !asked {
        return ExitCode::SUCCESS;
    }
    let filter = arguments
        .iter()
        .find(|argument| !argument.starts_with("--"));
    let wanted = |part: &Part| filter.is_none_or(|filter| describe(part).contains(filter.as_str()));
    #[cfg(target_os = "linux")]
    let mut counter = counter();
    #[cfg(not(target_os = "linux"))]
    let mut counter: Result<(), String> = Err("only Linux offers counters to this program".into());
    if let (false, Err(error)) = (callgrind, &counter) {
        eprintln!("this machine does not count instructions: {error}");
        return ExitCode::from(NO_COUNTER);
    }
    for part in parts::all().iter().filter(|part| wanted(part)) {
        let mut run = (part.prepare)();
        // once, so that tables and caches are as they are in the long run
        black_box(run());
        if callgrind {
            counted(&mut run);
            println!("{}", describe(part));
            continue;
        }
        #[cfg(target_os = "linux")]
        if let Ok(counter) = &mut counter {
            match count(counter, &mut run) {
                Ok(instructions) => println!("{}\t{instructions}", describe(part)),
                Err(error) => eprintln!("{}: {error}", describe(part)),
            }
        }
    }
    ExitCode::SUCCESS
}
