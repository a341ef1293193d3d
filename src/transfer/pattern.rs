//! Patterns of names that are left out.

/// A pattern as shells have them: `*` and `?` match within a name, `**` over names, `[a-z]` and `[!a-z]` one
/// byte, `\` the byte behind it. Without a slash it is held against names; with one, against paths under
/// the root of what is copied. With a slash at the end it matches directories only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    tokens: Vec<Token>,
    whole_path: bool,
    directories: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Byte(u8),
    /// `?`
    One,
    /// `*`
    Name,
    /// `**`
    Path,
    /// `**/`: any number of directories, also none.
    Directories,
    Class {
        negated: bool,
        ranges: Vec<(u8, u8)>,
    },
}

impl Token {
    /// Whether one byte is, or is the next part of, what the token means.
    fn takes(&self, byte: u8) -> bool {
        match self {
            Token::Byte(own) => *own == byte,
            Token::One | Token::Name => byte != b'/',
            Token::Path | Token::Directories => true,
            Token::Class { negated, ranges } => {
                let within = ranges
                    .iter()
                    .any(|(low, high)| (*low..=*high).contains(&byte));
                within != *negated && byte != b'/'
            }
        }
    }

    fn repeats(&self) -> bool {
        matches!(self, Token::Name | Token::Path | Token::Directories)
    }

    /// Whether the token may end in front of a byte, `start` telling whether a name begins there.
    fn may_be_skipped(&self, start: bool) -> bool {
        matches!(self, Token::Name | Token::Path) || *self == Token::Directories && start
    }
}

impl Pattern {
    pub fn new(text: &[u8]) -> Pattern {
        let directories = text.ends_with(b"/");
        let text = text.strip_suffix(b"/").unwrap_or(text);
        Pattern {
            whole_path: text.contains(&b'/'),
            tokens: parse(text.strip_prefix(b"/").unwrap_or(text)),
            directories,
        }
    }

    /// Whether it means what lies at `path` under the root.
    pub fn matches(&self, path: &[u8], is_dir: bool) -> bool {
        if self.directories && !is_dir {
            return false;
        }
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        self.fits(if self.whole_path { path } else { name })
    }

    /// Follows all ways through the tokens at once, so that no pattern takes long.
    fn fits(&self, text: &[u8]) -> bool {
        let count = self.tokens.len();
        let mut reached = vec![false; count + 1];
        reached[0] = true;
        let mut start = true;
        for &byte in text {
            self.skip(&mut reached, start);
            let mut next = vec![false; count + 1];
            for (at, token) in self.tokens.iter().enumerate() {
                if reached[at] && token.takes(byte) {
                    next[if token.repeats() { at } else { at + 1 }] = true;
                }
            }
            reached = next;
            start = byte == b'/';
        }
        self.skip(&mut reached, start);
        reached[count]
    }

    fn skip(&self, reached: &mut [bool], start: bool) {
        for (at, token) in self.tokens.iter().enumerate() {
            if reached[at] && token.may_be_skipped(start) {
                reached[at + 1] = true;
            }
        }
    }
}

fn parse(mut text: &[u8]) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut start = true;
    while let [first, rest @ ..] = text {
        let (token, rest) = match (first, rest) {
            (b'?', _) => (Token::One, rest),
            (b'*', [b'*', b'/', rest @ ..]) if start => (Token::Directories, rest),
            (b'*', [b'*', rest @ ..]) => (Token::Path, rest),
            (b'*', _) => (Token::Name, rest),
            (b'\\', [escaped, rest @ ..]) => (Token::Byte(*escaped), rest),
            // Without an end it is a bracket and nothing more.
            (b'[', _) => class(rest).unwrap_or((Token::Byte(b'['), rest)),
            (byte, _) => (Token::Byte(*byte), rest),
        };
        start = matches!(token, Token::Directories | Token::Byte(b'/'));
        tokens.push(token);
        text = rest;
    }
    tokens
}

/// The class whose opening bracket is in front of `text`, and what follows it.
fn class(text: &[u8]) -> Option<(Token, &[u8])> {
    let negated = matches!(text, [b'!' | b'^', ..]);
    let mut rest = &text[usize::from(negated)..];
    let mut ranges = Vec::new();
    loop {
        rest = match rest {
            [b']', rest @ ..] if !ranges.is_empty() => {
                return Some((Token::Class { negated, ranges }, rest));
            }
            [low, b'-', high, rest @ ..] if *high != b']' => {
                ranges.push((*low, *high));
                rest
            }
            [only, rest @ ..] => {
                ranges.push((*only, *only));
                rest
            }
            [] => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fits(pattern: &str, path: &str) -> bool {
        Pattern::new(pattern.as_bytes()).matches(path.as_bytes(), false)
    }

    #[test]
    fn patterns_mean_what_shells_mean_by_them() {
        for (pattern, path, expected) in [
            ("*.o", "main.o", true),
            ("*.o", "src/main.o", true),
            ("*.o", "main.c", false),
            ("main.?", "main.c", true),
            ("main.?", "main.", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]x]", "]", true),
            ("[ab", "[ab", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("/build", "build", true),
            ("/build", "src/build", false),
            ("src/*.o", "src/main.o", true),
            ("src/*.o", "src/deep/main.o", false),
            ("src/**.o", "src/deep/main.o", true),
            ("src/**/main.o", "src/main.o", true),
            ("src/**/main.o", "src/a/b/main.o", true),
            ("**/cache/*", "a/cache/b", true),
            ("**/cache/*", "a/cache/b/c", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("", "a", false),
        ] {
            assert_eq!(fits(pattern, path), expected, "{pattern} {path}");
        }
        let stars = "**/a*".repeat(40);
        assert!(!fits(&stars, &"a/".repeat(100)), "and none takes long");
        let dirs = Pattern::new(b"target/");
        assert!(dirs.matches(b"a/target", true) && !dirs.matches(b"a/target", false));
    }

    proptest! {
        #[test]
        fn every_text_matches_itself_escaped_and_stars(text in prop::collection::vec(1u8..255, 0..40)) {
            let escaped: Vec<u8> = text.iter().flat_map(|&byte| [b'\\', byte]).collect();
            let fits = |pattern: &[u8]| Pattern::new(pattern).fits(&text);
            prop_assert!(text.ends_with(b"/") || fits(&[b"/", &escaped[..]].concat()));
            prop_assert!(fits(b"**"));
            prop_assert_eq!(fits(b"*"), !text.contains(&b'/'));
        }
    }
}
