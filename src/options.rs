//! Mount options: one table that the parser, `--help` and the man page share.

mod complaints;
mod file;
mod list;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::codec::{Codecs, Device, Policy, Verify};
use crate::control::MetricsAddress;
use complaints::Complaints;
use log::LevelFilter;

pub use file::{OPTIONS_FILE, file_options, read_options};
pub use list::{join, split, split_all};

/// One mount option as the user sees it.
#[derive(Debug, Clone, Copy)]
pub struct OptionSpec {
    pub name: &'static str,
    /// Placeholder of the value, or None for a flag.
    pub value: Option<&'static str>,
    pub default: &'static str,
    pub help: &'static str,
}

const fn spec(
    name: &'static str,
    value: Option<&'static str>,
    default: &'static str,
    help: &'static str,
) -> OptionSpec {
    OptionSpec {
        name,
        value,
        default,
        help,
    }
}

/// The options that s2sfs itself understands.
pub const OPTIONS: &[OptionSpec] = &[
    spec(
        "cache",
        Some("SIZE"),
        "256M",
        "Memory for decoded chunks and model snapshots; groups that a network decodes may take as much again.",
    ),
    spec(
        "dirty",
        Some("SIZE"),
        "64M",
        "Memory for written data that is not yet in the log. Writers wait while it is full.",
    ),
    spec(
        "threads",
        Some("N"),
        "number of CPUs",
        "Threads that encode and decode.",
    ),
    spec(
        "policy",
        Some("ratio|balanced|fast|off"),
        "balanced",
        "What settling aims at: the smallest size, nearly the smallest with random reads in mind, \
         nothing that reads slower than zstd, or nothing that reads slower than what was written just \
         now. Directories and files can have policies of their own: see `s2sfs policy`.",
    ),
    spec(
        "extent",
        Some("SIZE"),
        "128K",
        "Slice of a file for which the codec is chosen: a power of two from 4K to 1M. \
         Affects data written from now on.",
    ),
    spec(
        "group",
        Some("SIZE|auto"),
        "auto",
        "Upper bound of the unit of random access inside an extent, from 512 bytes up to the extent.",
    ),
    spec(
        "model",
        Some("NAME|FILE"),
        "default",
        "Model that new blocks are encoded with: one that the program carries, or a file. The store \
         keeps a copy.",
    ),
    spec(
        "device",
        Some("auto|cpu|cuda:N"),
        "auto",
        "What evaluates the network of a model that has one: the processor, or the CUDA device of this \
         number. With auto all CUDA devices there are, otherwise the processor, which also goes on when a \
         device fails.",
    ),
    spec(
        "compressor",
        Some("DIR"),
        "none",
        "A compressor that `s2sfs train --s2s` has made for the network of the model: the latents that it writes are \
         tried for every extent, and kept where they make it smaller.",
    ),
    spec(
        "latents",
        Some("shared|own"),
        "shared",
        "Whether all groups of an extent share the latents, or each has its own.",
    ),
    spec(
        "segment",
        Some("SIZE"),
        "64M",
        "Length of the files of the log. Smaller ones are reclaimed in smaller steps.",
    ),
    spec(
        "settle_after",
        Some("TIME|never"),
        "5s",
        "How long a file must be left alone before it is settled: a number of seconds, or with \
         the suffix ms, s, m or h. With never, only `s2sfs settle` settles.",
    ),
    spec(
        "idle",
        Some("TIME"),
        "0s",
        "Settle only while nobody has read or written files of the mount for so long. A disk that is nearly \
         full and `s2sfs settle` do not wait for it.",
    ),
    spec(
        "verify",
        Some("full|sample|off"),
        "full",
        "Which blocks are decoded again when they are settled, and compared, before the staged copy is given \
         up: all, the first 16 of a mount and one of 16 after them (all again once one was wrong), or none. \
         Anything but full takes a risk: where the encoder has a fault, data is lost that was safe before, and \
         nobody knows until it is read.",
    ),
    spec(
        "ro",
        None,
        "off",
        "Mount read-only (also read_only). The store is not changed at all.",
    ),
    spec(
        "log",
        Some("FILE"),
        "syslog",
        "File that the background daemon appends its messages to.",
    ),
    spec(
        "log_level",
        Some("LEVEL"),
        "info",
        "What the daemon logs: off, error, warn, info, debug or trace. Stronger than the variable S2SFS_LOG.",
    ),
    spec(
        "metrics",
        Some("unix:PATH|ADDRESS:PORT"),
        "off",
        "Answer Prometheus at /metrics on this Unix socket, for its owner and group, or on this port of a \
         loopback address, for everybody on the machine.",
    ),
    spec(
        "allow_other",
        None,
        "on for root",
        "Let all users in, as far as file permissions allow. Without root, /etc/fuse.conf must \
         contain user_allow_other.",
    ),
    spec(
        "no_allow_other",
        None,
        "off",
        "Let only the mounting user in.",
    ),
    spec(
        "noatime",
        None,
        "off",
        "Do not update access times. Without it they are updated as with relatime.",
    ),
    spec(
        "noexec",
        None,
        "off",
        "Do not allow programs to be run from the mount.",
    ),
    spec(
        "nosuid",
        None,
        "on for users",
        "Ignore set-user-id and set-group-id bits.",
    ),
    spec(
        "nodev",
        None,
        "on for users",
        "Do not interpret device files.",
    ),
    spec("sync", None, "off", "Every write waits for the disk."),
    spec(
        "dirsync",
        None,
        "off",
        "Every change of a directory waits for the disk.",
    ),
    spec(
        "remount",
        None,
        "off",
        "Change ro, rw, suid, dev, exec and sync (or their opposites) of a mount that is there, \
         and nothing else. After remount,ro everything that was written is on the disk.",
    ),
];

/// Flags, and the options that take them back.
pub const OPPOSITES: &[(&str, &str)] = &[
    ("ro", "rw"),
    ("allow_other", "no_allow_other"),
    ("noatime", "relatime"),
    ("noexec", "exec"),
    ("nosuid", "suid"),
    ("nodev", "dev"),
    ("sync", "async"),
];

/// Options of mount(8) and fstab(5) that need nothing from us.
const SWALLOWED: &[&str] = &[
    // Taken care of before options are parsed.
    "remount",
    "rw",
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "_netdev",
    "nofail",
    "exec",
    "suid",
    "dev",
    "atime",
    "async",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "diratime",
    "nodiratime",
    "iversion",
    "noiversion",
    "mand",
    "nomand",
    "silent",
    "loud",
    "default_permissions",
    "symfollow",
    "seclabel",
];

/// Swallowed options that carry a value or a suffix of the user's own.
const SWALLOWED_PREFIXES: &[&str] = &[
    "x-",
    "X-",
    "comment=",
    "context=",
    "fscontext=",
    "defcontext=",
    "rootcontext=",
    "fsname=",
    "subtype=",
    // What mount(8) and its callers note for umount(8).
    "user=",
    "helper=",
    "uhelper=",
    // Shown by the kernel for every FUSE mount, and handed back by a remount.
    "fd=",
    "rootmode=",
    "user_id=",
    "group_id=",
    "max_read=",
    "blksize=",
];

/// Flags that the kernel enforces.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KernelFlags {
    pub allow_other: bool,
    pub noatime: bool,
    pub noexec: bool,
    pub nosuid: bool,
    pub nodev: bool,
    pub sync: bool,
    pub dirsync: bool,
}

/// The model that new blocks are encoded with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelChoice {
    /// One that the program carries, by its name.
    Embedded(String),
    File(PathBuf),
}

impl ModelChoice {
    /// The model that the program carries under this name, or, if there is none, the file of this name.
    pub fn of(name: &Path) -> ModelChoice {
        match Codecs::embedded_names().find(|known| name.as_os_str() == *known) {
            Some(known) => ModelChoice::Embedded(known.to_owned()),
            None => ModelChoice::File(name.to_owned()),
        }
    }
}

impl Default for ModelChoice {
    fn default() -> ModelChoice {
        ModelChoice::Embedded("default".into())
    }
}

/// All options of one mount, parsed and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub cache_bytes: u64,
    pub dirty_bytes: u64,
    pub threads: usize,
    pub policy: Policy,
    pub extent: u32,
    /// Upper bound of the group size; None lets the chooser decide.
    pub group: Option<u32>,
    pub model: ModelChoice,
    /// Where the networks of models are evaluated.
    pub device: Device,
    /// Directory of who writes latents, if latents are to be tried.
    pub compressor: Option<PathBuf>,
    /// Each group has latents of its own.
    pub own_latents: bool,
    /// Bytes after which the log begins another file.
    pub segment_bytes: u64,
    /// None: settle only when asked.
    pub settle_after: Option<Duration>,
    /// How long nobody must have read or written before anything is settled.
    pub idle: Duration,
    pub verify: Verify,
    pub read_only: bool,
    pub log: Option<PathBuf>,
    /// None: as the environment has it, or info.
    pub log_level: Option<LevelFilter>,
    pub metrics: Option<MetricsAddress>,
    pub kernel: KernelFlags,
}

impl Default for Settings {
    fn default() -> Settings {
        let root = rustix::process::geteuid().is_root();
        Settings {
            cache_bytes: 256 << 20,
            dirty_bytes: 64 << 20,
            threads: std::thread::available_parallelism().map_or(1, |n| n.get()),
            policy: Policy::default(),
            extent: 128 << 10,
            group: None,
            model: ModelChoice::default(),
            device: Device::Auto,
            compressor: None,
            own_latents: false,
            segment_bytes: 64 << 20,
            settle_after: Some(Duration::from_secs(5)),
            idle: Duration::ZERO,
            verify: Verify::Full,
            read_only: false,
            log: None,
            log_level: None,
            metrics: None,
            kernel: KernelFlags {
                allow_other: root,
                nosuid: !root,
                nodev: !root,
                ..KernelFlags::default()
            },
        }
    }
}

impl Settings {
    /// Parses the values of any number of `-o` arguments; later ones win. The error names everything
    /// that is wrong.
    pub fn parse<S: AsRef<str>>(lists: &[S]) -> Result<Settings, String> {
        Settings::from_options(&split_all(lists)?)
    }

    /// As [`Settings::parse`], over the options that `store` brings along, if it is there and does.
    pub fn of_store<S: AsRef<str>>(store: &Path, lists: &[S]) -> Result<Settings, String> {
        let mut options = read_options(store)?;
        options.extend(split_all(lists)?);
        Settings::from_options(&options)
    }

    /// Settings from single options, without escapes.
    pub fn from_options<S: AsRef<str>>(options: &[S]) -> Result<Settings, String> {
        let mut settings = Settings::default();
        let mut complaints = Complaints::default();
        for option in options.iter().map(S::as_ref).filter(|o| !o.is_empty()) {
            match settings.apply(option) {
                Ok(()) => {}
                Err(Reject::Unknown) => complaints.unknown(option),
                Err(Reject::Value(why)) => complaints.wrong(format!("option {option}: {why}")),
            }
        }
        complaints.into_result()?;
        if let Some(group) = settings.group
            && group > settings.extent
        {
            return Err(format!(
                "group={group} is larger than the extent of {} bytes",
                settings.extent
            ));
        }
        Ok(settings)
    }

    fn apply(&mut self, option: &str) -> Result<(), Reject> {
        match option.split_once('=') {
            Some((name, value)) => self.apply_value(name, value),
            None => self.apply_flag(option),
        }
    }

    fn apply_value(&mut self, name: &str, value: &str) -> Result<(), Reject> {
        match name {
            "cache" => self.cache_bytes = size(value, 1 << 20, 1 << 44)?,
            "dirty" => self.dirty_bytes = size(value, 1 << 20, 1 << 40)?,
            "threads" => self.threads = size(value, 1, 1024)? as usize,
            "policy" => self.policy = policy(value)?,
            "extent" => self.extent = power_of_two(value, 4 << 10, 1 << 20)?,
            "group" if value == "auto" => self.group = None,
            "group" => self.group = Some(power_of_two(value, 512, 1 << 20)?),
            "model" => self.model = model(value)?,
            "device" => self.device = device(value)?,
            "compressor" => self.compressor = Some(path(value)?),
            "latents" => self.own_latents = own_latents(value)?,
            "segment" => self.segment_bytes = size(value, 64 << 10, 1 << 30)?,
            "settle_after" => self.settle_after = time(value)?,
            "idle" => self.idle = idle(value)?,
            "verify" => self.verify = verify(value)?,
            "log" => self.log = Some(path(value)?),
            "log_level" => self.log_level = Some(log_level(value)?),
            "metrics" => self.metrics = metrics(value)?,
            _ if swallowed_prefix(name, value) => {}
            _ => return Err(Reject::Unknown),
        }
        Ok(())
    }

    fn apply_flag(&mut self, name: &str) -> Result<(), Reject> {
        let kernel = &mut self.kernel;
        match name {
            "ro" | "read_only" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => kernel.allow_other = true,
            "no_allow_other" => kernel.allow_other = false,
            "noatime" => kernel.noatime = true,
            "atime" | "relatime" | "strictatime" => kernel.noatime = false,
            "noexec" => kernel.noexec = true,
            "exec" => kernel.noexec = false,
            "nosuid" => kernel.nosuid = true,
            "suid" => kernel.nosuid = false,
            "nodev" => kernel.nodev = true,
            "dev" => kernel.nodev = false,
            "sync" => kernel.sync = true,
            "async" => kernel.sync = false,
            "dirsync" => kernel.dirsync = true,
            // mount(8): these imply noexec, nosuid and nodev unless overridden later.
            "user" | "users" => {
                kernel.noexec = true;
                kernel.nosuid = true;
                kernel.nodev = true;
            }
            "owner" | "group" => {
                kernel.nosuid = true;
                kernel.nodev = true;
            }
            _ if SWALLOWED.contains(&name) || name.starts_with("x-") || name.starts_with("X-") => {}
            _ => return Err(Reject::Unknown),
        }
        Ok(())
    }
}

/// The options that are known, for mount(8)'s `-s`. Wrong values of known options stay in.
pub fn known_only(lists: &[String]) -> Result<Vec<String>, String> {
    let known = |option: &String| {
        let name = option.split('=').next().unwrap_or(option);
        OPTIONS.iter().any(|spec| spec.name == name) || Settings::from_options(&[option]).is_ok()
    };
    let mut options = split_all(lists)?;
    options.retain(known);
    Ok(vec![join(&options)])
}

/// Why an option was not taken.
enum Reject {
    Unknown,
    Value(String),
}

fn reject<T>(why: impl Into<String>) -> Result<T, Reject> {
    Err(Reject::Value(why.into()))
}

fn swallowed_prefix(name: &str, value: &str) -> bool {
    let option = format!("{name}={value}");
    SWALLOWED_PREFIXES
        .iter()
        .any(|prefix| option.starts_with(prefix))
}

/// Parses a number of bytes with an optional suffix K, M, G or T (powers of 1024).
pub fn parse_size(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let short = lower
        .strip_suffix("ib")
        .or_else(|| lower.strip_suffix('b'))
        .unwrap_or(&lower);
    let (digits, shift) = match short.as_bytes().last()? {
        b'k' => (&short[..short.len() - 1], 10),
        b'm' => (&short[..short.len() - 1], 20),
        b'g' => (&short[..short.len() - 1], 30),
        b't' => (&short[..short.len() - 1], 40),
        _ => (short, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1u64 << shift)
}

fn model(text: &str) -> Result<ModelChoice, Reject> {
    Ok(ModelChoice::of(&path(text)?))
}

fn own_latents(text: &str) -> Result<bool, Reject> {
    match text {
        "shared" => Ok(false),
        "own" => Ok(true),
        _ => Err(Reject::Value("it must be shared or own".into())),
    }
}

fn device(text: &str) -> Result<Device, Reject> {
    Device::parse(text).map_or_else(|| reject("expected auto, cpu, cuda or cuda:N"), Ok)
}

fn log_level(text: &str) -> Result<LevelFilter, Reject> {
    match text.parse() {
        Ok(level) => Ok(level),
        Err(_) => reject("must be off, error, warn, info, debug or trace"),
    }
}

fn metrics(text: &str) -> Result<Option<MetricsAddress>, Reject> {
    if text == "off" {
        return Ok(None);
    }
    if let Some(name) = text.strip_prefix("unix:") {
        let path = PathBuf::from(name);
        return match path.is_absolute() {
            true => Ok(Some(MetricsAddress::Unix(path))),
            false => reject("the path of the socket must be absolute"),
        };
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if !address.ip().is_loopback() => {
            reject("only loopback addresses such as 127.0.0.1:9464 are allowed")
        }
        Ok(address) if address.port() == 0 => reject("needs a port"),
        Ok(address) => Ok(Some(MetricsAddress::Tcp(address))),
        Err(_) => reject("must be unix:PATH, 127.0.0.1:PORT, [::1]:PORT or off"),
    }
}

fn size(text: &str, least: u64, most: u64) -> Result<u64, Reject> {
    match parse_size(text) {
        Some(bytes) if (least..=most).contains(&bytes) => Ok(bytes),
        Some(_) => reject(format!("must be between {least} and {most}")),
        None => reject("not a number (suffixes K, M, G and T are allowed)"),
    }
}

fn power_of_two(text: &str, least: u64, most: u64) -> Result<u32, Reject> {
    let bytes = size(text, least, most)?;
    if !bytes.is_power_of_two() {
        return reject("must be a power of two");
    }
    u32::try_from(bytes).map_err(|_| Reject::Value("too large".into()))
}

fn policy(text: &str) -> Result<Policy, Reject> {
    let known = Policy::parse(text.as_bytes());
    known.map_or_else(|| reject("must be ratio, balanced, fast or off"), Ok)
}

fn verify(text: &str) -> Result<Verify, Reject> {
    Verify::parse(text).map_or_else(|| reject("must be full, sample or off"), Ok)
}

fn idle(text: &str) -> Result<Duration, Reject> {
    match time(text)? {
        Some(time) => Ok(time),
        None => reject("never is no time; settle_after=never is what leaves all settling to you"),
    }
}

fn path(text: &str) -> Result<PathBuf, Reject> {
    if text.is_empty() {
        return reject("needs a file name");
    }
    Ok(PathBuf::from(text))
}

fn time(text: &str) -> Result<Option<Duration>, Reject> {
    match text {
        "never" => Ok(None),
        _ => parse_time(text).map(Some).map_err(Reject::Value),
    }
}

/// Parses a time as people write it: a number of seconds, or one with the suffix ms, s, m or h.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let units = [
        ("ms", 1),
        ("s", 1000),
        ("m", 60_000),
        ("h", 3_600_000),
        ("", 1000),
    ];
    let parsed = units.iter().find_map(|(suffix, millis)| {
        let number: u64 = text.strip_suffix(suffix)?.parse().ok()?;
        number.checked_mul(*millis)
    });
    match parsed {
        Some(millis) if millis <= 365 * 24 * 3_600_000 => Ok(Duration::from_millis(millis)),
        Some(_) => Err("is longer than a year".into()),
        None => Err("not a time: use for example 500ms, 5s, 10m or 1h".into()),
    }
}

/// The option table as indented text for `--help`.
pub fn help_text() -> String {
    let mut text = String::from("Mount options (-o NAME=VALUE,...):\n");
    for spec in OPTIONS {
        let name = match spec.value {
            Some(value) => format!("{}={value}", spec.name),
            None => spec.name.to_string(),
        };
        text.push_str(&format!(
            "  {name}\n        {} [default: {}]\n",
            spec.help, spec.default
        ));
    }
    text.push_str(
        "Other options of mount(8) and fstab(5), such as nofail, _netdev and x-*, are accepted.\n",
    );
    text
}

/// The option table as the body of a man page section, in man(7) macros.
pub fn man_text() -> String {
    let mut text = String::new();
    for spec in OPTIONS {
        let name = match spec.value {
            Some(value) => format!("\\fB{}=\\fR\\fI{value}\\fR", roff(spec.name)),
            None => format!("\\fB{}\\fR", roff(spec.name)),
        };
        let help = roff(spec.help).replace('`', "\"");
        text.push_str(&format!(
            ".TP\n{name}\n{help}\nDefault: {}.\n",
            roff(spec.default)
        ));
    }
    text
}

/// The options that a store's file may set, as the body of a man page section.
pub fn man_keys() -> String {
    let mut text = String::new();
    for spec in file_options() {
        let value = match spec.value {
            Some(value) if value.contains("SIZE") || value == "N" => {
                format!("\\fI\"{value}\"\\fR or a number")
            }
            Some(value) => format!("\\fI\"{value}\"\\fR"),
            None => "true or false".into(),
        };
        let help = roff(spec.help).replace('`', "\"");
        text.push_str(&format!(
            ".TP\n\\fB{}\\fR = {value}\n{help}\n",
            roff(spec.name)
        ));
    }
    text
}

/// Escapes text for roff.
pub fn roff(text: &str) -> String {
    text.replace('\\', "\\e").replace('-', "\\-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<Settings, String> {
        Settings::parse(&[list])
    }

    #[test]
    fn a_model_is_named_or_a_file() {
        for name in Codecs::embedded_names() {
            let settings = parse(&format!("model={name}")).unwrap();
            assert_eq!(settings.model, ModelChoice::Embedded(name.into()));
        }
        let settings = parse("model=./default,device=cuda").unwrap();
        assert_eq!(settings.model, ModelChoice::File("./default".into()));
        assert_eq!(settings.device, Device::Cuda(0));
        assert!(parse("device=gpu").unwrap_err().contains("cuda:N"));
    }

    #[test]
    fn every_option_of_the_table_is_accepted_and_only_with_or_without_its_value() {
        for spec in OPTIONS {
            let sample = match spec.name {
                "cache" | "dirty" | "segment" => "64M",
                "threads" => "2",
                "policy" => "fast",
                "extent" => "64K",
                "group" => "4K",
                "device" => "cuda:1",
                "latents" => "own",
                "settle_after" | "idle" => "1m",
                "verify" => "sample",
                "log_level" => "debug",
                "metrics" => "[::1]:9464",
                _ => "/tmp/file",
            };
            match spec.value {
                Some(_) => {
                    parse(&format!("{}={sample}", spec.name)).unwrap();
                    if spec.name != "group" {
                        assert!(parse(spec.name).unwrap_err().contains("needs a value"));
                    }
                }
                None => {
                    parse(spec.name).unwrap();
                    assert!(
                        parse(&format!("{}=1", spec.name))
                            .unwrap_err()
                            .contains("no value")
                    );
                }
            }
        }
    }

    #[test]
    fn defaults_in_the_table_are_the_defaults_of_the_settings() {
        for spec in OPTIONS.iter().filter(|spec| spec.value.is_some()) {
            if let Ok(settings) = parse(&format!("{}={}", spec.name, spec.default))
                && !["model", "log", "log_level", "compressor"].contains(&spec.name)
            {
                assert_eq!(settings, Settings::default(), "{}", spec.name);
            }
        }
    }

    #[test]
    fn later_options_win_and_generic_ones_are_swallowed() {
        let settings = Settings::parse(&[
            "rw,noauto,nofail,_netdev,x-systemd.automount,x-gvfs-show=1,comment=a,group,,cache=1M",
            "cache=2M,ro",
        ])
        .unwrap();
        assert_eq!(settings.cache_bytes, 2 << 20);
        assert!(settings.read_only);
        assert_eq!(settings.group, None);
    }

    #[test]
    fn every_flag_and_its_opposite_take_each_other_back() {
        for (on, off) in OPPOSITES {
            let of = |list: String| parse(&list).unwrap();
            assert_eq!(of(format!("{on},{off}")), of((*off).into()), "{on}");
            assert_eq!(of(format!("{off},{on}")), of((*on).into()), "{off}");
            assert_ne!(of((*on).into()), of((*off).into()));
        }
    }

    #[test]
    fn what_mount_and_its_callers_pass_along_changes_nothing() {
        let list = "defaults,noauto,auto,nouser,nofail,_netdev,x-systemd.automount,X-mount.mkdir=0755,\
                    comment=a\\,b,user=alice,uhelper=udisks2,default_permissions,async,lazytime,\
                    user_id=0,group_id=0,max_read=131072,fsname=a,subtype=s2sfs";
        assert_eq!(parse(list).unwrap(), Settings::default());
    }

    #[test]
    fn sloppy_mounts_drop_unknown_options_only() {
        let known = |list: &str| known_only(&[list.to_string()]).unwrap();
        assert_eq!(
            known("cache=1M,compress=zstd,nofail,foo,ro,log=/a\\,b"),
            ["cache=1M,nofail,ro,log=/a\\,b"]
        );
        assert!(Settings::parse(&known("cache=lots")).is_err());
    }

    #[test]
    fn wrong_values_are_refused_with_the_reason() {
        for (list, reason) in [
            ("cache=10", "between"),
            ("cache=lots", "not a number"),
            ("cache=", "not a number"),
            ("threads=0", "between"),
            ("policy=best", "ratio, balanced, fast or off"),
            ("verify=most", "full, sample or off"),
            ("idle=never", "settle_after=never"),
            ("extent=100000", "power of two"),
            ("extent=2M", "between"),
            ("extent=64K,group=128K", "larger than the extent"),
            ("settle_after=soon", "not a time"),
            ("settle_after=99999999h", "longer than a year"),
            ("model=", "file name"),
            ("log_level=loud", "debug or trace"),
            ("metrics=unix:m.sock", "absolute"),
            ("metrics=0.0.0.0:9464", "loopback"),
            ("metrics=127.0.0.1:0", "needs a port"),
            ("metrics=9464", "unix:PATH"),
            ("compress=zstd", "unknown option compress=zstd"),
            ("cache=99999999999999999999G", "not a number"),
            (
                "cahce=1G,ro,foo",
                "unknown options cahce=1G (did you mean cache?), foo",
            ),
            ("foo,threads=0", "between"),
            ("foo,threads=0", "unknown option foo"),
            ("log=\"a", "not closed"),
        ] {
            let error = parse(list).unwrap_err();
            assert!(error.contains(reason), "{list}: {error}");
        }
    }

    #[test]
    fn sizes_and_times_are_read_as_people_write_them() {
        assert_eq!(parse_size("4096"), Some(4096));
        assert_eq!(parse_size("4k"), Some(4096));
        assert_eq!(parse_size("4KiB"), Some(4096));
        assert_eq!(parse_size("1G"), Some(1 << 30));
        assert_eq!(parse_size("-1"), None);
        assert_eq!(parse_size("K"), None);
        assert_eq!(
            parse("settle_after=500ms").unwrap().settle_after,
            Some(Duration::from_millis(500))
        );
        assert_eq!(
            parse("settle_after=7").unwrap().settle_after,
            Some(Duration::from_secs(7))
        );
        assert_eq!(parse("settle_after=never").unwrap().settle_after, None);
    }
}
