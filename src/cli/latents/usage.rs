//! Which latents are used, and which tokens go with them.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use crate::cli::output;
use crate::codec::Latents;

/// Tokens that are shown for a latent, and by how many standard errors they stand out at least.
const SHOWN: usize = 8;
const STANDS_OUT: f64 = 1.0;

type Counts = HashMap<u16, u64>;

/// How latents were used in some extents.
#[derive(Debug, Default)]
pub struct Usage {
    /// Strings that are not empty.
    strings: u64,
    latents: BTreeMap<u16, Use>,
    /// Tokens of all texts, with latents and without.
    tokens: Counts,
}

/// One latent.
#[derive(Debug, Default)]
struct Use {
    times: u64,
    strings: u64,
    /// Of the texts whose string has it.
    tokens: Counts,
}

/// A latent and the tokens that its texts have beyond the others.
#[derive(Debug, Serialize)]
pub struct Example {
    groups: String,
    latents: String,
    latent: u16,
    times: u64,
    strings: u64,
    tokens: Vec<Excess>,
}

#[derive(Debug, Serialize)]
struct Excess {
    token: String,
    count: u64,
    /// Logarithm (natural) of its odds in texts with the latent, less that in texts without.
    log_odds: f64,
}

impl Usage {
    /// Counts an extent, whose groups have these tokens.
    pub fn add(&mut self, groups: &[Vec<u16>], latents: Option<&Latents>) {
        count(&mut self.tokens, groups);
        let Some(latents) = latents else {
            return;
        };
        self.add_string(groups, &latents.shared);
        for (group, string) in groups.iter().zip(&latents.own) {
            self.add_string(std::slice::from_ref(group), string);
        }
    }

    fn add_string(&mut self, text: &[Vec<u16>], string: &[u16]) {
        self.strings += u64::from(!string.is_empty());
        for (at, latent) in string.iter().enumerate() {
            let entry = self.latents.entry(*latent).or_default();
            entry.times += 1;
            if !string[..at].contains(latent) {
                entry.strings += 1;
                count(&mut entry.tokens, text);
            }
        }
    }

    pub fn strings(&self) -> u64 {
        self.strings
    }

    /// Latents of all strings together.
    pub fn latents(&self) -> u64 {
        self.latents.values().map(|entry| entry.times).sum()
    }

    pub fn distinct(&self) -> usize {
        self.latents.len()
    }

    /// Entropy of the latents in use, in bits.
    pub fn entropy(&self) -> f64 {
        let all = self.latents() as f64;
        let shares = self.latents.values().map(|entry| entry.times as f64 / all);
        shares.fold(0.0, |sum, share| sum + share * (1.0 / share).log2())
    }

    /// The most used latents, and what goes with them.
    pub fn examples<'a>(
        &self,
        groups: &str,
        latents: &str,
        most: usize,
        text: impl Fn(u16) -> &'a [u8],
    ) -> Vec<Example> {
        let mut sorted: Vec<_> = self.latents.iter().collect();
        sorted.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.times));
        let example = |(&latent, entry): (&u16, &Use)| Example {
            groups: groups.to_owned(),
            latents: latents.to_owned(),
            latent,
            times: entry.times,
            strings: entry.strings,
            tokens: self.excess(entry, &text),
        };
        sorted.into_iter().take(most).map(example).collect()
    }

    /// The tokens that a latent's texts have most beyond all others: by the log odds in units of their standard error,
    /// because those of rare tokens are mostly chance.
    fn excess<'a>(&self, entry: &Use, text: impl Fn(u16) -> &'a [u8]) -> Vec<Excess> {
        let total = |counts: &Counts| counts.values().sum::<u64>();
        let with = total(&entry.tokens) as f64;
        let without = total(&self.tokens) as f64 - with;
        if without <= 0.0 {
            return vec![];
        }
        let of = |(&token, &count): (&u16, &u64)| {
            let all = self.tokens.get(&token).copied().unwrap_or(0);
            let (a, b) = (count as f64 + 0.5, all.saturating_sub(count) as f64 + 0.5);
            let log_odds = (a / (with - count as f64 + 0.5)).ln() - (b / (without - b + 1.0)).ln();
            (
                token,
                count,
                log_odds,
                log_odds / (1.0 / a + 1.0 / b).sqrt(),
            )
        };
        let mut all: Vec<_> = entry
            .tokens
            .iter()
            .map(of)
            .filter(|of| of.3 > STANDS_OUT)
            .collect();
        all.sort_by(|a, b| b.3.total_cmp(&a.3).then(a.0.cmp(&b.0)));
        all.truncate(SHOWN);
        let excess = |(token, count, log_odds, _)| Excess {
            token: String::from_utf8_lossy(text(token))
                .escape_debug()
                .to_string(),
            count,
            log_odds,
        };
        all.into_iter().map(excess).collect()
    }
}

fn count(counts: &mut Counts, text: &[Vec<u16>]) {
    for &token in text.iter().flatten() {
        *counts.entry(token).or_default() += 1;
    }
}

pub fn table(examples: &[Example]) -> String {
    let cells = |example: &Example| {
        let tokens = example.tokens.iter();
        // a bar would end the cell
        let shown = tokens.map(|excess| {
            let token = excess.token.replace('|', "\\|");
            format!("`{token}` {:+.1}", excess.log_odds)
        });
        [
            example.groups.clone(),
            example.latents.clone(),
            shown.collect::<Vec<_>>().join(" "),
            example.latent.to_string(),
            example.times.to_string(),
            example.strings.to_string(),
        ]
    };
    let rows: Vec<_> = examples.iter().map(cells).collect();
    let head = [
        "groups",
        "latents",
        "tokens, log odds",
        "latent",
        "times",
        "strings",
    ];
    output::table(head, 3, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latent_goes_with_the_tokens_that_only_its_texts_have() {
        let mut usage = Usage::default();
        let own = |own: Vec<Vec<u16>>| Latents {
            shared: vec![],
            own,
        };
        let groups = [vec![1, 1, 2, 2, 2], vec![1, 1, 3, 3, 3]];
        for _ in 0..4 {
            usage.add(&groups, Some(&own(vec![vec![7, 7], vec![9]])));
        }
        usage.add(&groups, None);
        let tokens: [&[u8]; 4] = [b"a", b"b", b"\n", b"|"];
        let found = usage.examples("g", "own", 2, |token| tokens[usize::from(token)]);
        assert_eq!(
            (found[0].latent, found[0].times, found[0].strings),
            (7, 8, 4)
        );
        assert_eq!(found[0].tokens[0].token, "\\n");
        assert_eq!((found[1].latent, found[1].tokens[0].count), (9, 12));
        assert!(found.iter().all(|example| example.tokens.len() == 1));
        assert_eq!(
            (usage.strings(), usage.latents(), usage.distinct()),
            (8, 12, 2)
        );
        let entropy = -(2f64 / 3.0).log2() * 2.0 / 3.0 - (1f64 / 3.0).log2() / 3.0;
        assert!((usage.entropy() - entropy).abs() < 1e-12);
        assert!(table(&found).contains("`\\|`"));
    }

    #[test]
    fn nothing_used_has_no_entropy() {
        let mut usage = Usage::default();
        usage.add(&[vec![1, 2]], None);
        assert_eq!(
            (usage.strings(), usage.latents(), usage.entropy()),
            (0, 0, 0.0)
        );
        assert!(usage.examples("g", "own", 3, |_| b"x").is_empty());
    }
}
