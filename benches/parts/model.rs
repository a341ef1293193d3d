//! Experts, mixer and tokenizer, each alone.

use s2sfs::benching::{
    Decoder, Encoder, Form, Histories, Learning, LookUps, Mixing, OPERATIONS, Work, mixed, split,
};
use s2sfs::model::matcher::Matcher;
use s2sfs::model::merges::Merges;
use s2sfs::model::predictor::BitCoder;
use s2sfs::model::tokenizer::Tokenizer;
use s2sfs::model::vocabulary::Vocabulary;

use super::{Amount, Part, Run, text};

/// Decisions of one run of the range coder.
const DECISIONS: usize = 64 << 10;
/// Lines of a table: with two tables 16 MiB, more than the caches of a core.
const LINES: usize = 1 << 17;
const TEXT: usize = 64 << 10;
/// Tokens of the vocabulary that is trained for measuring the tokenizer.
const VOCABULARY: usize = 2048;

pub fn parts() -> Vec<Part> {
    let mut parts = range_coder();
    for form in Form::available() {
        let mut add = |group, name: &str, work: Box<dyn Fn() -> Run>| {
            let amount = Amount::Elements(OPERATIONS as u64);
            parts.push(Part::new(
                group,
                format!("{name}, {}", form.name()),
                amount,
                work,
            ));
        };
        add("mixer", "mix", runs(form, || Mixing::new(false)));
        add("mixer", "mix and learn", runs(form, || Mixing::new(true)));
        add("tables", "look-up", runs(form, || LookUps::new(LINES)));
        add(
            "overlay",
            "learn a nibble",
            runs(form, || Learning::new(32 << 10)),
        );
        add("histories", "learn a bit", runs(form, Histories::default));
    }
    parts.push(matcher());
    parts.extend(tokenizer());
    parts
}

fn runs<W: Work + 'static>(form: Form, make: impl Fn() -> W + 'static) -> Box<dyn Fn() -> Run> {
    Box::new(move || {
        let mut work = make();
        Box::new(move || form.run(&mut work))
    })
}

/// Probabilities as a model has them, mostly near 0 or 1, and bits that agree with them.
fn decisions() -> Vec<(u16, u32)> {
    let decision = |at: u64| {
        let number = mixed(at);
        let near = (((number & 0xffff) * (number >> 16 & 0xffff)) >> 17) as u16;
        let p = (if number >> 32 & 1 == 1 {
            near
        } else {
            65535 - near
        })
        .max(1);
        (p, u32::from((number >> 33) as u16 <= p))
    };
    (0..DECISIONS as u64).map(decision).collect()
}

fn encoded(decisions: &[(u16, u32)]) -> Vec<u8> {
    let mut encoder = Encoder::default();
    for &(p, bit) in decisions {
        encoder.code(p, bit);
    }
    encoder.finish()
}

fn range_coder() -> Vec<Part> {
    let amount = Amount::Elements(DECISIONS as u64);
    let encode = || -> Run {
        let decisions = decisions();
        Box::new(move || encoded(&decisions).len() as u64)
    };
    let decode = || -> Run {
        let decisions = decisions();
        let code = encoded(&decisions);
        Box::new(move || {
            let mut decoder = Decoder::new(&code);
            let bits = decisions.iter().map(|&(p, _)| decoder.code(p, 0));
            bits.map(u64::from).sum()
        })
    };
    vec![
        Part::new("range coder", "encode", amount, encode),
        Part::new("range coder", "decode", amount, decode),
    ]
}

fn matcher() -> Part {
    let run = || -> Run {
        let text = text(TEXT);
        Box::new(move || {
            let (mut matcher, mut right) = (Matcher::new(5, TEXT, true), 0);
            for at in 0..text.len() {
                match matcher.predicted(&text[..at]) {
                    Some(byte) if byte == text[at] => right += 1,
                    Some(_) => matcher.miss(),
                    None => {}
                }
                matcher.update(&text[..=at]);
            }
            right
        })
    };
    Part::new(
        "match expert",
        "predict and update",
        Amount::Bytes(TEXT as u64),
        run,
    )
}

fn tokenizer() -> Vec<Part> {
    let amount = Amount::Bytes(TEXT as u64);
    let trained = || {
        let text = text(TEXT);
        let tokenizer = Tokenizer::train(std::iter::once(text.as_slice()), VOCABULARY);
        let tokenizer = tokenizer.and_then(Tokenizer::sorted);
        (tokenizer.expect("a vocabulary"), text)
    };
    let words = || -> Run {
        let text = text(TEXT);
        Box::new(move || split(&text) as u64)
    };
    let library = move || -> Run {
        let (tokenizer, text) = trained();
        Box::new(move || tokenizer.token_ids(&text).expect("tokens").len() as u64)
    };
    let own = move || -> Run {
        let (tokenizer, text) = trained();
        let vocabulary = Vocabulary::new(&tokenizer).expect("a vocabulary");
        let merges = Merges::new(&tokenizer, &vocabulary).expect("merges");
        Box::new(move || merges.tokens(&text).len() as u64)
    };
    vec![
        Part::new("tokenizer", "split into words", amount, words),
        Part::new("tokenizer", "encode, library", amount, library),
        Part::new("tokenizer", "encode, own merges", amount, own),
    ]
}
