//! Mount options that a store brings along: `STORE/options.toml`, see s2sfs.toml(5).

use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use toml::Value;

use super::complaints::Complaints;
use super::{ModelChoice, OPPOSITES, OPTIONS, OptionSpec, Settings};

/// Name of the file in a store.
pub const OPTIONS_FILE: &str = "options.toml";
/// No such file is longer.
const MAX_LEN: u64 = 64 << 10;

/// Options that a file may not set: what is done once, and where the daemon, which may be root's, writes, puts a socket or
/// opens a port.
const NOT_IN_FILES: [&str; 4] = ["remount", "log", "metrics", "no_allow_other"];

/// The options that a file may set.
pub fn file_options() -> impl Iterator<Item = &'static OptionSpec> {
    OPTIONS
        .iter()
        .filter(|spec| !NOT_IN_FILES.contains(&spec.name))
}

/// The options in the file of a store, as on the command line but not escaped. None if it has no such
/// file. Fails if somebody else could have written it, and lists all that is wrong in it.
pub fn read_options(store: &Path) -> Result<Vec<String>, String> {
    let path = store.join(OPTIONS_FILE);
    let complain = |why: String| format!("{}: {why}", path.display());
    let text = match read(&path) {
        // What is no store is refused by whoever opens it.
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        other => other.map_err(|e| complain(e.to_string()))?,
    };
    let options = parse(&text, store).map_err(complain)?;
    // Wrong values are the file's fault, not that of the command line that is added to them.
    Settings::from_options(&options).map_err(complain)?;
    Ok(options)
}

fn read(path: &Path) -> io::Result<String> {
    // No link to what only root may read, and no pipe to wait at.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let meta = file.metadata()?;
    let owners = [0, rustix::process::geteuid().as_raw()];
    if !meta.is_file() || !owners.contains(&meta.uid()) || meta.mode() & 0o022 != 0 {
        let why = "it must be a file that only root or the user who mounts can write";
        return Err(io::Error::other(why));
    }
    if meta.len() > MAX_LEN {
        return Err(io::Error::other("it is too long"));
    }
    let mut text = String::new();
    file.take(MAX_LEN).read_to_string(&mut text)?;
    Ok(text)
}

fn parse(text: &str, store: &Path) -> Result<Vec<String>, String> {
    let table: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    let mut complaints = Complaints::default();
    let mut options = Vec::new();
    for (key, value) in &table {
        match file_options().find(|spec| spec.name == key) {
            Some(spec) => match option(spec, value, store) {
                Ok(option) => options.push(option),
                Err(why) => complaints.wrong(format!("{key}: {why}")),
            },
            None if NOT_IN_FILES.contains(&key.as_str()) => {
                complaints.wrong(format!("{key} is for the command line only"));
            }
            None => complaints.unknown(key),
        }
    }
    complaints.into_result()?;
    Ok(options)
}

/// One key as an option of the command line.
fn option(spec: &OptionSpec, value: &Value, store: &Path) -> Result<String, String> {
    let name = spec.name;
    match (spec.value, value) {
        (Some(_), Value::Integer(number)) => Ok(format!("{name}={number}")),
        (Some(_), Value::String(text)) if ["model", "compressor"].contains(&name) => {
            Ok(format!("{name}={}", in_store(text, store).display()))
        }
        (Some(_), Value::String(text)) => Ok(format!("{name}={text}")),
        (Some(expected), _) => Err(format!("expected \"{expected}\" or a number")),
        (None, Value::Boolean(true)) => Ok(name.into()),
        (None, Value::Boolean(false)) => Ok(opposite(name).unwrap_or_default().into()),
        (None, _) => Err("expected true or false".into()),
    }
}

fn opposite(name: &str) -> Option<&'static str> {
    let mut pairs = OPPOSITES.iter();
    pairs.find(|(on, _)| *on == name).map(|(_, off)| *off)
}

/// Files are looked for in the store, whatever the working directory of the mount is.
fn in_store(text: &str, store: &Path) -> PathBuf {
    match ModelChoice::of(Path::new(text)) {
        ModelChoice::Embedded(name) => PathBuf::from(name),
        ModelChoice::File(path) => store.join(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, String> {
        Settings::from_options(&super::parse(text, Path::new("/store"))?)
    }

    #[test]
    fn keys_are_the_options_of_the_command_line() {
        let text = "cache = \"1G\"\nthreads = 3\npolicy = \"ratio\"\nnoatime = true\nsync = false\n\
                    model = \"mine.s2m\"\nsettle_after = \"never\"\n";
        let settings = parse(text).unwrap();
        assert_eq!(settings.cache_bytes, 1 << 30);
        assert_eq!(settings.threads, 3);
        assert!(settings.kernel.noatime && !settings.kernel.sync);
        assert_eq!(settings.model, ModelChoice::File("/store/mine.s2m".into()));
        assert_eq!(settings.settle_after, None);
        assert_eq!(parse("").unwrap(), Settings::default());
        assert_eq!(parse("model = \"default\"").unwrap(), Settings::default());
    }

    #[test]
    fn false_is_the_opposite_and_the_default_where_there_is_none() {
        for spec in file_options().filter(|spec| spec.value.is_none()) {
            let settings = parse(&format!("{} = false", spec.name)).unwrap();
            let expected = Settings::from_options(&[opposite(spec.name).unwrap_or("")]).unwrap();
            assert_eq!(settings, expected, "{}", spec.name);
        }
    }

    #[test]
    fn everything_that_is_wrong_is_listed() {
        let text = "cahce = \"1G\"\nfoo = 1\nlog = \"/etc/passwd\"\nro = 1\ndirty = true\nmetrics = \"unix:/run/x\"\n";
        let error = parse(text).unwrap_err();
        for part in [
            "unknown options cahce (did you mean cache?), foo",
            "log is for the command line only",
            "metrics is for the command line only",
            "ro: expected true or false",
            "dirty: expected \"SIZE\" or a number",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(parse("cache = 1").unwrap_err().contains("between"));
        assert!(parse("cache").is_err());
    }
}
