//! The files of a store beside its log: `s2sfs.toml`, which makes a directory a store, and the models.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::segment::LOG_DIR;
use super::storage::Storage;
use super::{Result, StoreError, format};

pub(crate) const DESCRIPTION: &str = "s2sfs.toml";
const DESCRIPTION_TEMPORARY: &str = "s2sfs.toml.tmp";
/// Directory of the models, under the root of a store.
pub const MODEL_DIR: &str = "models";
/// No description, and no model, is longer.
const MAX_DESCRIPTION: u64 = 64 << 10;
const MAX_MODEL: u64 = 4 << 30;
/// A name with the suffix of a temporary file behind it is still a name.
const MAX_MODEL_NAME: usize = 250;
pub(crate) const INDEX_DIR: &str = "index";
/// Space that only unlink, settling and reclaim may use; exists only while the store is open for writing.
pub(crate) const RESERVE: &str = "log/reserve";
/// Names that a half-created store, or an empty file system under it, may contain.
const NOT_CONTENT: [&str; 7] = [
    LOG_DIR,
    MODEL_DIR,
    INDEX_DIR,
    DESCRIPTION_TEMPORARY,
    // Mount options, which may be there before the store is.
    "options.toml",
    "lock",
    "lost+found",
];

/// The text of `s2sfs.toml`.
#[derive(Serialize, Deserialize)]
struct DescriptionText {
    uuid: String,
    format: u32,
    #[serde(default)]
    features: Vec<String>,
}

/// What `s2sfs.toml` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Description {
    pub uuid: Uuid,
    pub format: u32,
    /// Features a program must know to read the store. This one knows none.
    pub features: Vec<String>,
}

/// Reads the description. `None`: there is no store yet, and the directory is fit to become one.
pub(crate) fn read_description(storage: &dyn Storage) -> Result<Option<Description>> {
    let place = format!("{}/{DESCRIPTION}", storage.describe());
    let io = |op| StoreError::io(op, &place);
    if !storage.exists(DESCRIPTION).map_err(io("stat"))? {
        check_unused(storage)?;
        return Ok(None);
    }
    parse_description(&storage.describe(), &description_bytes(storage)?).map(Some)
}

/// The bytes of the description.
pub(crate) fn description_bytes(storage: &dyn Storage) -> Result<Vec<u8>> {
    read_file(storage, DESCRIPTION, MAX_DESCRIPTION)
}

/// What the description of the store at `place` says. Formats and features that this program does not know
/// are refused here, for every command.
pub(crate) fn parse_description(place: &str, bytes: &[u8]) -> Result<Description> {
    let damaged = |why: String| {
        StoreError::damaged("store description", format!("{place}/{DESCRIPTION}"), why)
    };
    let text = std::str::from_utf8(bytes).map_err(|e| damaged(e.to_string()))?;
    let table: toml::Table = text
        .parse()
        .map_err(|e: toml::de::Error| damaged(e.message().to_owned()))?;
    // The version is looked at first: a newer description may not even have the same fields.
    let found = table
        .get("format")
        .and_then(toml::Value::as_integer)
        .unwrap_or(0);
    format::check_version(place, u32::try_from(found).unwrap_or(u32::MAX))?;
    let text: DescriptionText = table
        .try_into()
        .map_err(|e: toml::de::Error| damaged(e.message().to_owned()))?;
    if text.format == 0 {
        return Err(damaged("format version 0".into()));
    }
    format::check_features(place, &text.features)?;
    let uuid = Uuid::parse_str(&text.uuid).map_err(|e| damaged(e.to_string()))?;
    Ok(Description {
        uuid,
        format: text.format,
        features: text.features,
    })
}

/// Err unless the directory is missing, empty, or a store whose creation was interrupted: that one has
/// a description under its temporary name, which creation writes first and renames last.
fn check_unused(storage: &dyn Storage) -> Result<()> {
    if !storage
        .exists("")
        .map_err(StoreError::io("stat", &storage.describe()))?
    {
        return Ok(());
    }
    let list = |dir: &str| storage.list(dir).map_err(StoreError::io("list", dir));
    let entries = list("")?;
    let has = |name: &str| entries.iter().any(|entry| entry.name == name);
    let foreign = entries
        .iter()
        .any(|entry| !NOT_CONTENT.contains(&entry.name.as_str()));
    let used = !has(DESCRIPTION_TEMPORARY) && has(LOG_DIR) && !list(LOG_DIR)?.is_empty();
    if foreign || used {
        return Err(StoreError::NotAStore(storage.describe()));
    }
    Ok(())
}

/// Begins the creation of a store: what an interrupted attempt has left is removed, and the
/// description is written under its temporary name, durably.
pub(crate) fn begin_creation(storage: &dyn Storage, description: &Description) -> Result<()> {
    if storage
        .exists(LOG_DIR)
        .map_err(StoreError::io("stat", LOG_DIR))?
    {
        for entry in storage
            .list(LOG_DIR)
            .map_err(StoreError::io("list", LOG_DIR))?
        {
            let path = format!("{LOG_DIR}/{}", entry.name);
            storage
                .unlink(&path)
                .map_err(StoreError::io("unlink", &path))?;
        }
        storage
            .sync_dir(LOG_DIR)
            .map_err(StoreError::io("fsync", LOG_DIR))?;
    }
    let text = description_text(description)?;
    write_temporary(storage, DESCRIPTION_TEMPORARY, text.as_bytes())?;
    storage.sync_dir("").map_err(StoreError::io("fsync", "."))
}

/// The last step of the creation of a store.
pub(crate) fn finish_creation(storage: &dyn Storage) -> Result<()> {
    storage
        .rename(DESCRIPTION_TEMPORARY, DESCRIPTION)
        .map_err(StoreError::io("rename", DESCRIPTION))?;
    storage.sync_dir("").map_err(StoreError::io("fsync", "."))
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read_file(storage: &dyn Storage, path: &str, limit: u64) -> Result<Vec<u8>> {
    let io = |op| StoreError::io(op, path);
    let file = storage.open(path, false).map_err(io("open"))?;
    let len = file.size().map_err(io("stat"))?;
    if len > limit {
        return Err(StoreError::damaged("file", path, "it is too large"));
    }
    let len = len as usize;
    let mut bytes = vec![0; len];
    let got = file.read_at(0, &mut bytes).map_err(io("read"))?;
    bytes.truncate(got);
    Ok(bytes)
}

/// Writes a file that is to be renamed; its contents are durable on return, its name is not.
fn write_temporary(storage: &dyn Storage, temporary: &str, bytes: &[u8]) -> Result<()> {
    if storage
        .exists(temporary)
        .map_err(StoreError::io("stat", temporary))?
    {
        storage
            .unlink(temporary)
            .map_err(StoreError::io("unlink", temporary))?;
    }
    let file = storage
        .create(temporary)
        .map_err(StoreError::io("create", temporary))?;
    file.write_at(0, &[bytes])
        .map_err(StoreError::io("write", temporary))?;
    file.sync_data()
        .map_err(StoreError::io("fdatasync", temporary))?;
    Ok(())
}

/// Replaces a file as a whole: after a crash it has the old or the new contents, after return the new ones.
pub(crate) fn replace_file(
    storage: &dyn Storage,
    dir: &str,
    path: &str,
    temporary: &str,
    bytes: &[u8],
) -> Result<()> {
    write_temporary(storage, temporary, bytes)?;
    storage
        .rename(temporary, path)
        .map_err(StoreError::io("rename", path))?;
    storage.sync_dir(dir).map_err(StoreError::io("fsync", dir))
}

/// Whether a file in the directory of the models can be a model.
pub(crate) fn is_model_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=MAX_MODEL_NAME).contains(&name.len())
        && !name.starts_with('.')
        && !name.ends_with(".tmp")
        && name.chars().all(plain)
}

fn model_path(name: &str) -> Result<String> {
    if !is_model_name(name) {
        return Err(StoreError::Invalid(format!("'{name}' cannot name a model")));
    }
    Ok(format!("{MODEL_DIR}/{name}"))
}

/// Writes the description of a store anew, durably.
pub(crate) fn rewrite_description(storage: &dyn Storage, description: &Description) -> Result<()> {
    let text = description_text(description)?;
    replace_file(
        storage,
        "",
        DESCRIPTION,
        DESCRIPTION_TEMPORARY,
        text.as_bytes(),
    )
}

fn description_text(description: &Description) -> Result<String> {
    let text = DescriptionText {
        uuid: description.uuid.to_string(),
        format: description.format,
        features: description.features.clone(),
    };
    toml::to_string(&text)
        .map_err(|e| StoreError::Invalid(format!("{DESCRIPTION} cannot be written: {e}")))
}

/// Stores a model, replacing one of the same name; durable on return.
pub(crate) fn put_model(storage: &dyn Storage, name: &str, bytes: &[u8]) -> Result<()> {
    let path = model_path(name)?;
    if !storage
        .exists(MODEL_DIR)
        .map_err(StoreError::io("stat", MODEL_DIR))?
    {
        storage
            .mkdir(MODEL_DIR)
            .map_err(StoreError::io("mkdir", MODEL_DIR))?;
        storage.sync_dir("").map_err(StoreError::io("fsync", "."))?;
    }
    replace_file(storage, MODEL_DIR, &path, &format!("{path}.tmp"), bytes)
}

/// The bytes of a model, unverified: names are content hashes that the caller checks.
pub(crate) fn get_model(storage: &dyn Storage, name: &str) -> Result<Option<Vec<u8>>> {
    let path = model_path(name)?;
    if !storage
        .exists(&path)
        .map_err(StoreError::io("stat", &path))?
    {
        return Ok(None);
    }
    read_file(storage, &path, MAX_MODEL).map(Some)
}

/// The names of all files in the directory of the models.
pub(crate) fn model_names(storage: &dyn Storage) -> Result<Vec<String>> {
    if !storage
        .exists(MODEL_DIR)
        .map_err(StoreError::io("stat", MODEL_DIR))?
    {
        return Ok(Vec::new());
    }
    let entries = storage
        .list(MODEL_DIR)
        .map_err(StoreError::io("list", MODEL_DIR))?;
    Ok(entries.into_iter().map(|entry| entry.name).collect())
}

/// Hands the bytes of a model to `sink` in pieces. False if there is no such model.
pub(crate) fn read_model(
    storage: &dyn Storage,
    name: &str,
    sink: &mut dyn FnMut(&[u8]),
) -> Result<bool> {
    const PIECE: usize = 256 << 10;
    let path = model_path(name)?;
    if !storage
        .exists(&path)
        .map_err(StoreError::io("stat", &path))?
    {
        return Ok(false);
    }
    let file = storage
        .open(&path, false)
        .map_err(StoreError::io("open", &path))?;
    let (mut piece, mut at) = (vec![0; PIECE], 0);
    loop {
        let got = file
            .read_at(at, &mut piece)
            .map_err(StoreError::io("read", &path))?;
        sink(&piece[..got]);
        at += got as u64;
        if got < PIECE {
            return Ok(true);
        }
    }
}

/// Bytes on disk of all models.
pub(crate) fn model_bytes(storage: &dyn Storage) -> Result<u64> {
    storage
        .allocated(MODEL_DIR)
        .map_err(StoreError::io("stat", MODEL_DIR))
}
