//! What is wrong with a list of options, all of it at once.

use super::{OPPOSITES, OPTIONS, OptionSpec, SWALLOWED};

/// Collects what was refused.
#[derive(Debug, Default)]
pub(super) struct Complaints {
    unknown: Vec<String>,
    wrong: Vec<String>,
}

impl Complaints {
    /// Nothing of this name, with or without a value, exists.
    pub fn unknown(&mut self, option: &str) {
        let name = option.split('=').next().unwrap_or(option);
        let wrong = match OPTIONS.iter().find(|spec| spec.name == name) {
            Some(OptionSpec {
                value: Some(value), ..
            }) => format!("option {option} needs a value: {name}={value}"),
            Some(_) => format!("option {name} takes no value"),
            None => {
                let hint = closest(name).map(|known| format!(" (did you mean {known}?)"));
                self.unknown
                    .push(format!("{option}{}", hint.unwrap_or_default()));
                return;
            }
        };
        self.wrong.push(wrong);
    }

    pub fn wrong(&mut self, why: String) {
        self.wrong.push(why);
    }

    /// Fails with a message of one line if there is anything to complain of.
    pub fn into_result(mut self) -> Result<(), String> {
        match self.unknown.as_slice() {
            [] => {}
            [one] => self.wrong.push(format!("unknown option {one}")),
            many => self
                .wrong
                .push(format!("unknown options {}", many.join(", "))),
        }
        match self.wrong.is_empty() {
            true => Ok(()),
            false => Err(self.wrong.join("; ")),
        }
    }
}

/// The known name that somebody may have meant: one or two slips away, less for short names.
fn closest(name: &str) -> Option<&'static str> {
    let allowed = name.len().div_ceil(4).min(2);
    let known = OPTIONS.iter().map(|spec| spec.name);
    known
        .chain(OPPOSITES.iter().map(|(_, off)| *off))
        .chain(SWALLOWED.iter().copied())
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, _)| *distance <= allowed)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_slips_are_recognised_and_others_are_not() {
        assert_eq!(closest("cahce"), Some("cache"));
        assert_eq!(closest("settleafter"), Some("settle_after"));
        assert_eq!(closest("noatme"), Some("noatime"));
        assert_eq!(closest("allow_others"), Some("allow_other"));
        assert_eq!(closest("umask"), None);
        assert_eq!(closest("r"), Some("ro"));
        assert_eq!(closest("xyzzy"), None);
    }
}
