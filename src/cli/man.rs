//! `s2sfs man`: the parts of the manual pages that come from the program's own tables.

use clap::Args;

use super::output;
use crate::control::metrics;
use crate::exit::{Exit, Failure, MountExit, Outcome};
use crate::options::{self, roff};

#[derive(Debug, Args)]
pub struct ManArguments {
    /// s2sfs.1, mount.s2sfs.8, s2sfs.toml.5 or metrics.md
    page: String,
}

const COMMANDS_TEMPLATE: &str = include_str!("../../docs/man/s2sfs.1.in");
const METRICS_TEMPLATE: &str = include_str!("../../docs/metrics.md.in");
const HELPER_TEMPLATE: &str = include_str!("../../docs/man/mount.s2sfs.8.in");
const FILES_TEMPLATE: &str = include_str!("../../docs/man/s2sfs.toml.5.in");

pub fn run(arguments: &ManArguments) -> Outcome<()> {
    match arguments.page.as_str() {
        "s2sfs.1" => output::print(&commands_page()),
        "mount.s2sfs.8" => output::print(&helper_page()),
        "metrics.md" => output::print(&METRICS_TEMPLATE.replace("@METRICS@\n", &metrics::table())),
        "s2sfs.toml.5" => output::print(&fill(FILES_TEMPLATE)),
        page => Err(Failure::usage(format!("no such page: {page}"))),
    }
}

fn commands_page() -> String {
    fill(COMMANDS_TEMPLATE)
}

fn helper_page() -> String {
    fill(HELPER_TEMPLATE)
}

fn fill(template: &str) -> String {
    template
        .replace("@VERSION@", env!("CARGO_PKG_VERSION"))
        .replace("@COMMANDS@\n", &commands())
        .replace("@OPTIONS@\n", &options::man_text())
        .replace("@KEYS@\n", &options::man_keys())
        .replace("@MOUNTEXIT@\n", &mount_exit_codes())
        .replace("@EXIT@\n", &exit_codes())
}

/// One entry for each command that is not hidden.
fn commands() -> String {
    let mut text = String::new();
    describe(&mut text, "s2sfs", &super::definition());
    text
}

/// Describes the commands of `parent`, each followed by those that it has itself.
fn describe(text: &mut String, prefix: &str, parent: &clap::Command) {
    for command in parent.get_subcommands().filter(|c| !c.is_hide_set()) {
        let name = format!("{prefix} {}", command.get_name());
        text.push_str(&format!(".TP\n\\fB{}\\fR{}\n", roff(&name), usage(command)));
        let about = command
            .get_about()
            .map(ToString::to_string)
            .unwrap_or_default();
        text.push_str(&format!("{}.\n", roff(&about)));
        for argument in command.get_arguments().filter(|a| !a.is_hide_set()) {
            let help = argument
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            text.push_str(&format!(
                ".br\n{}: {}.\n",
                argument_name(argument),
                roff(&help)
            ));
        }
        describe(text, &name, command);
    }
}

fn usage(command: &clap::Command) -> String {
    let mut text = String::new();
    for argument in command.get_arguments().filter(|a| !a.is_hide_set()) {
        let name = argument_name(argument);
        if argument.is_positional() || argument.is_required_set() {
            text.push_str(&format!(" {name}"));
        } else {
            text.push_str(&format!(" [{name}]"));
        }
    }
    text
}

fn argument_name(argument: &clap::Arg) -> String {
    let value = argument
        .get_value_names()
        .and_then(|names| names.first())
        .map(ToString::to_string);
    let value = value.unwrap_or_else(|| argument.get_id().to_string().to_uppercase());
    let flag = match (argument.get_long(), argument.get_short()) {
        _ if argument.is_positional() => return format!("\\fI{}\\fR", roff(&value)),
        (Some(long), _) => format!("\\fB{}\\fR", roff(&format!("--{long}"))),
        (None, Some(short)) => format!("\\fB{}\\fR", roff(&format!("-{short}"))),
        (None, None) => String::new(),
    };
    if argument.get_action().takes_values() {
        format!("{flag} \\fI{}\\fR", roff(&value))
    } else {
        flag
    }
}

fn mount_exit_codes() -> String {
    MountExit::ALL
        .iter()
        .map(|(exit, meaning)| format!(".TP\n\\fB{}\\fR\n{}\n", *exit as u8, roff(meaning)))
        .collect()
}

fn exit_codes() -> String {
    Exit::ALL
        .iter()
        .map(|(exit, meaning)| format!(".TP\n\\fB{}\\fR\n{}\n", *exit as u8, roff(meaning)))
        .collect()
}
