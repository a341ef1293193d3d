//! Reading the options of a mount again while it is there, and applying those that can be.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::supervision::Supervision;
use super::volume::tuning;
use super::{Request, settings};
use crate::control::ReloadReport;
use crate::options::Settings;
use crate::volume::Volume;

/// The options of a mount, and where they come from.
pub struct Reloader {
    volume: Arc<Volume>,
    supervision: Arc<Supervision>,
    store: PathBuf,
    directory: PathBuf,
    now: Mutex<Now>,
}

struct Now {
    option_lists: Vec<String>,
    /// What is in force.
    settings: Settings,
}

impl Reloader {
    pub fn new(volume: Arc<Volume>, supervision: Arc<Supervision>, request: &Request) -> Reloader {
        Reloader {
            volume,
            supervision,
            store: request.store.clone(),
            directory: request.directory.clone(),
            now: Mutex::new(Now {
                option_lists: request.option_lists.clone(),
                settings: request.settings.clone(),
            }),
        }
    }

    /// Reads the options of the store again, under those given, or those of the mount. If any is wrong,
    /// nothing changes.
    pub fn reload(&self, option_lists: Option<Vec<String>>) -> Result<ReloadReport, String> {
        let outcome = self.supervision.reload(|| self.apply(option_lists));
        match &outcome {
            Ok(report) => log::info!("options of {}: {report}", self.store.display()),
            Err(why) => log::error!("the options stay as they are: {why}"),
        }
        outcome
    }

    fn apply(&self, option_lists: Option<Vec<String>>) -> Result<ReloadReport, String> {
        let mut now = self.now.lock();
        let option_lists = option_lists.unwrap_or_else(|| now.option_lists.clone());
        let wanted = settings(&self.store, &option_lists, &self.directory)?;
        let report = compare(&now.settings, &wanted);
        let tuning = tuning(&wanted);
        self.volume.tune(&tuning);
        let settings = &mut now.settings;
        settings.cache_bytes = wanted.cache_bytes;
        settings.dirty_bytes = wanted.dirty_bytes;
        settings.policy = wanted.policy;
        settings.group = wanted.group;
        settings.settle_after = wanted.settle_after;
        settings.kernel.noatime = wanted.kernel.noatime;
        now.option_lists = option_lists;
        Ok(report)
    }
}

/// Which options differ: those that [`Volume::tune`] changes, and the others.
fn compare(old: &Settings, new: &Settings) -> ReloadReport {
    let (was, is) = (&old.kernel, &new.kernel);
    let changed = [
        ("cache", old.cache_bytes != new.cache_bytes),
        ("dirty", old.dirty_bytes != new.dirty_bytes),
        ("policy", old.policy != new.policy),
        ("group", old.group != new.group),
        ("settle_after", old.settle_after != new.settle_after),
        ("noatime", was.noatime != is.noatime),
    ];
    let kept = [
        ("threads", old.threads != new.threads),
        ("extent", old.extent != new.extent),
        ("model", old.model != new.model),
        ("device", old.device != new.device),
        ("compressor", old.compressor != new.compressor),
        ("latents", old.own_latents != new.own_latents),
        ("segment", old.segment_bytes != new.segment_bytes),
        ("idle", old.idle != new.idle),
        ("verify", old.verify != new.verify),
        ("metrics", old.metrics != new.metrics),
        ("ro", old.read_only != new.read_only),
        ("log", old.log != new.log),
        ("log_level", old.log_level != new.log_level),
        ("allow_other", was.allow_other != is.allow_other),
        ("noexec", was.noexec != is.noexec),
        ("nosuid", was.nosuid != is.nosuid),
        ("nodev", was.nodev != is.nodev),
        ("sync", was.sync != is.sync),
        ("dirsync", was.dirsync != is.dirsync),
    ];
    let names = |list: &[(&str, bool)]| {
        let differing = list.iter().filter(|(_, differs)| *differs);
        differing.map(|(name, _)| name.to_string()).collect()
    };
    ReloadReport {
        changed: names(&changed),
        kept: names(&kept),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::OPTIONS;

    #[test]
    fn every_option_is_compared() {
        let old = Settings::from_options(&["rw"]).unwrap();
        for spec in OPTIONS.iter().filter(|spec| spec.name != "remount") {
            let values = [
                "1M",
                "3",
                "fast",
                "8K",
                "512",
                "/some/file",
                "cpu",
                "own",
                "1h",
                "sample",
                "debug",
                "unix:/run/metrics",
            ];
            let options: Vec<String> = match (spec.name, spec.value) {
                (_, Some(_)) => values
                    .iter()
                    .map(|v| format!("{}={v}", spec.name))
                    .collect(),
                ("nosuid" | "nodev" | "allow_other" | "no_allow_other", None) => {
                    vec![
                        spec.name.into(),
                        spec.name.trim_start_matches("no").into(),
                        "no_allow_other".into(),
                    ]
                }
                (_, None) => vec![spec.name.into()],
            };
            let mut tried = options
                .iter()
                .filter_map(|o| Settings::from_options(&[o]).ok());
            let new = tried.find(|new| *new != old).expect(spec.name);
            let report = compare(&old, &new);
            assert_eq!(report.changed.len() + report.kept.len(), 1, "{}", spec.name);
        }
    }
}
