//! `s2sfs completions`: what clap makes for a shell, and the mount options behind `-o`, which come from
//! the table of options.

mod words;

use clap::{Args, ValueEnum};
use clap_complete::Shell;
use words::Word;

use super::output;
use crate::exit::Outcome;

/// Commands whose `-o` takes mount options.
const WITH_MOUNT_OPTIONS: [&str; 5] = ["mount", "reload", "compress", "decompress", "bench"];

const BASH: &str = include_str!("bash.in");
const ZSH: &str = include_str!("zsh.in");
const FISH: &str = include_str!("fish.in");
const ELVISH: &str = include_str!("elvish.in");

#[derive(Debug, Args)]
pub struct CompletionsArguments {
    /// The shell that is to read the output
    shell: Target,
}

/// Shells that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Bash,
    Zsh,
    Fish,
    Elvish,
}

pub fn run(arguments: &CompletionsArguments) -> Outcome<()> {
    output::print(&script(arguments.shell))
}

fn script(target: Target) -> String {
    let words = words::all();
    match target {
        Target::Bash => generated(Shell::Bash) + &bash(&words),
        Target::Zsh => zsh(&generated(Shell::Zsh), &words),
        Target::Fish => generated(Shell::Fish) + &fish(&words),
        Target::Elvish => generated(Shell::Elvish) + &elvish(&words),
    }
}

fn generated(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut visible(), "s2sfs", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// The commands that `--help` shows.
fn visible() -> clap::Command {
    let all = super::definition();
    let commands = all.get_subcommands().filter(|c| !c.is_hide_set());
    clap::Command::new("s2sfs")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommands(commands.cloned())
}

fn bash(words: &[Word]) -> String {
    let names: Vec<&str> = words.iter().map(|word| word.text.as_str()).collect();
    let with_values = words.iter().filter(|w| !w.values.is_empty() || w.files);
    let cases = with_values.map(|word| {
        let files = if word.files { " files=1" } else { "" };
        format!(
            "                {}) values=\"{}\"{files} ;;\n",
            word.name(),
            word.values.join(" ")
        )
    });
    BASH.replace("@COMMANDS@", &WITH_MOUNT_OPTIONS.join("|"))
        .replace("@NAMES@", &names.join(" "))
        .replace("@CASES@\n", &cases.collect::<String>())
}

fn zsh(generated: &str, words: &[Word]) -> String {
    let entries = words.iter().map(|word| {
        let help = word.help.replace('\\', "\\\\").replace('\'', "'\\''");
        let help = ["[", "]", ":"]
            .iter()
            .fold(help, |help, mark| help.replace(mark, &format!("\\{mark}")));
        let value = match (word.takes_value(), word.files) {
            (false, _) => String::new(),
            (true, true) => format!(":{}:_files", word.name()),
            (true, false) if word.values.is_empty() => format!(":{}: ", word.name()),
            (true, false) => {
                let values: Vec<String> =
                    word.values.iter().map(|v| v.replace(':', "\\:")).collect();
                format!(":{}:({})", word.name(), values.join(" "))
            }
        };
        format!("        '{}[{help}]{value}' \\\n", word.name())
    });
    let function = ZSH.replace("@ENTRIES@\n", &entries.collect::<String>());
    let with_options = generated.replace(":OPTIONS:_default", ":OPTIONS:_s2sfs_mount_options");
    // Behind the line that says what is completed.
    match with_options.split_once('\n') {
        Some((first, rest)) => format!("{first}\n{function}{rest}"),
        None => with_options,
    }
}

fn fish(words: &[Word]) -> String {
    let entries = words.iter().flat_map(|word| {
        let help = fish_quoted(&word.help);
        let line = move |text: &str| format!("        {} {help} \\\n", fish_quoted(text));
        let whole: Vec<String> = word
            .values
            .iter()
            .map(|value| line(&format!("{}{value}", word.text)))
            .collect();
        [line(&word.text)].into_iter().chain(whole)
    });
    let entries = entries.collect::<String>();
    let uses = WITH_MOUNT_OPTIONS.map(|command| {
        format!(
            "complete -c s2sfs -n \"__fish_s2sfs_using_subcommand {command}\" -s o -x \
             -a '(__s2sfs_mount_options)'\n"
        )
    });
    FISH.replace("@ENTRIES@\n", &entries) + &uses.concat()
}

fn fish_quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

fn elvish(words: &[Word]) -> String {
    let entries = words.iter().flat_map(|word| {
        let whole = word
            .values
            .iter()
            .map(|value| format!("{}{value}", word.text));
        let texts = std::iter::once(word.text.clone()).chain(whole);
        texts.map(|text| {
            let help = word.help.replace('\'', "''");
            format!("        '{text}' '{help}'\n")
        })
    });
    ELVISH
        .replace("@COMMANDS@", &WITH_MOUNT_OPTIONS.join(" "))
        .replace("@ENTRIES@\n", &entries.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_hears_of_every_command_and_option_and_no_placeholder_is_left() {
        for shell in Target::value_variants() {
            let script = script(*shell);
            for command in super::super::definition().get_subcommands() {
                let shown = script.contains(command.get_name());
                assert!(shown || command.is_hide_set(), "{}", command.get_name());
            }
            for word in words::all() {
                assert!(script.contains(word.name()), "{shell:?}: {}", word.text);
            }
            for placeholder in ["@ENTRIES@", "@NAMES@", "@CASES@", "@COMMANDS@"] {
                assert!(!script.contains(placeholder), "{shell:?}: {placeholder}");
            }
            assert!(!script.contains("bench-store"), "{shell:?}");
        }
    }
}
