//! The mount options as words that a shell can complete.

use crate::codec::Codecs;
use crate::options::{OPPOSITES, OPTIONS, OptionSpec};

/// One mount option.
pub struct Word {
    /// The name, with `=` if a value follows.
    pub text: String,
    pub help: String,
    /// Values that are words.
    pub values: Vec<String>,
    /// The value may be a file or directory.
    pub files: bool,
}

impl Word {
    pub fn name(&self) -> &str {
        self.text.trim_end_matches('=')
    }

    pub fn takes_value(&self) -> bool {
        self.text.ends_with('=')
    }
}

/// Every option of the table, and the opposites of flags.
pub fn all() -> Vec<Word> {
    let mut words: Vec<Word> = OPTIONS.iter().map(word).collect();
    for (on, off) in OPPOSITES {
        if !words.iter().any(|word| word.text == *off) {
            words.push(Word {
                text: off.to_string(),
                help: format!("The opposite of {on}."),
                values: Vec::new(),
                files: false,
            });
        }
    }
    words
}

fn word(spec: &OptionSpec) -> Word {
    let alternatives = spec.value.unwrap_or_default().split('|');
    let mut values: Vec<String> = Vec::new();
    let mut files = false;
    for alternative in alternatives.filter(|a| !a.is_empty()) {
        match alternative {
            "FILE" | "DIR" => files = true,
            "NAME" => values.extend(Codecs::embedded_names().map(str::to_owned)),
            // cuda:N
            _ if alternative.ends_with(":N") => {
                values.push(alternative.trim_end_matches('N').to_owned());
            }
            _ if alternative.chars().any(char::is_uppercase) => {}
            _ => values.push(alternative.to_owned()),
        }
    }
    let equals = if spec.value.is_some() { "=" } else { "" };
    Word {
        text: format!("{}{equals}", spec.name),
        help: spec.help.to_owned(),
        values,
        files,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_from_the_placeholders_of_the_table() {
        let words = all();
        let of = |name: &str| words.iter().find(|w| w.name() == name).unwrap();
        assert_eq!(of("policy").values, ["ratio", "balanced", "fast", "off"]);
        assert_eq!(of("device").values, ["auto", "cpu", "cuda:"]);
        assert!(of("model").files && of("model").values.contains(&"default".to_string()));
        assert!(of("cache").values.is_empty() && of("cache").takes_value());
        assert!(!of("rw").takes_value() && !of("ro").takes_value());
    }
}
