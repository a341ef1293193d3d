//! Other programs on the same bytes: how small common compressors get them, as one stream and in pieces.

use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde::Serialize;
use tempfile::TempDir;

use super::output;
use crate::control::ratio;
use crate::exit::{Context, Failure, Outcome};

/// Bytes of a piece: what can be read without the rest.
const PIECE: usize = 128 << 10;

/// A program that compresses, at its strongest.
struct Peer {
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    /// Whether it makes an archive of files instead of turning its input into its output.
    archives: bool,
}

const PEERS: [Peer; 6] = [
    Peer::filter("gzip -9", "gzip", &["-9", "-c"]),
    Peer::filter("xz -9e", "xz", &["-9e", "-c"]),
    Peer::filter("zstd -19", "zstd", &["-19", "-c", "-q"]),
    Peer::filter("zstd --ultra -22", "zstd", &["--ultra", "-22", "-c", "-q"]),
    Peer::filter("brotli -q 11", "brotli", &["-q", "11", "-c"]),
    Peer {
        name: "zpaq -m5",
        program: "zpaq",
        arguments: &["-m5"],
        archives: true,
    },
];

/// One program on one class. Sizes are missing where it is not installed.
#[derive(Debug, Serialize)]
pub struct PeerRow {
    pub class: String,
    pub program: String,
    pub raw_bytes: u64,
    pub whole_bytes: Option<u64>,
    pub pieces_bytes: Option<u64>,
}

impl Peer {
    const fn filter(
        name: &'static str,
        program: &'static str,
        arguments: &'static [&'static str],
    ) -> Peer {
        Peer {
            name,
            program,
            arguments,
            archives: false,
        }
    }

    /// Bytes that `raw` takes compressed; None if there is no such program.
    fn size(&self, raw: &[u8], dir: &Path) -> Outcome<Option<u64>> {
        let input = dir.join("input");
        std::fs::write(&input, raw).context(input.display())?;
        let archive = dir.join("archive.zpaq");
        let mut command = Command::new(self.program);
        match self.archives {
            true => {
                let _ = std::fs::remove_file(&archive);
                // a name without directories, which would be stored
                command
                    .current_dir(dir)
                    .args(["add", "archive.zpaq", "input"]);
            }
            false => {
                command.stdin(File::open(&input).context(input.display())?);
            }
        }
        command.args(self.arguments).stderr(Stdio::piped());
        let output = match command.output() {
            Ok(output) => output,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).context(self.program),
        };
        let Output {
            status,
            stdout,
            stderr,
        } = output;
        if !status.success() {
            let said = String::from_utf8_lossy(&stderr);
            return Err(Failure::failed(format!(
                "{}: {status}: {}",
                self.name,
                said.trim()
            )));
        }
        Ok(Some(match self.archives {
            true => archive.metadata().context(archive.display())?.len(),
            false => stdout.len() as u64,
        }))
    }
}

/// Runs all programs on the bytes of a class.
pub fn measure(class: &str, raw: &[u8]) -> Outcome<Vec<PeerRow>> {
    let dir = TempDir::with_prefix("s2sfs-peers-").context("temporary directory")?;
    let row = |peer: &Peer| {
        let pieces = raw.chunks(PIECE).map(|piece| peer.size(piece, dir.path()));
        let pieces: Option<Vec<u64>> = pieces.collect::<Outcome<_>>()?;
        Ok(PeerRow {
            class: class.to_owned(),
            program: peer.name.to_owned(),
            raw_bytes: raw.len() as u64,
            whole_bytes: peer.size(raw, dir.path())?,
            pieces_bytes: pieces.map(|sizes| sizes.iter().sum()),
        })
    };
    PEERS.iter().map(row).collect()
}

pub fn table(rows: &[PeerRow]) -> String {
    let cells = |row: &PeerRow| {
        let size = |bytes: Option<u64>| match bytes {
            Some(bytes) => [
                bytes.to_string(),
                format!("{:.3}", ratio(row.raw_bytes, bytes)),
            ],
            None => ["not installed".into(), "-".into()],
        };
        let [whole, whole_ratio] = size(row.whole_bytes);
        let [pieces, pieces_ratio] = size(row.pieces_bytes);
        [
            row.class.clone(),
            row.program.clone(),
            row.raw_bytes.to_string(),
            whole,
            whole_ratio,
            pieces,
            pieces_ratio,
        ]
    };
    let rows: Vec<_> = rows.iter().map(cells).collect();
    let head = [
        "class",
        "program",
        "bytes",
        "one stream",
        "ratio",
        "128 KiB pieces",
        "ratio",
    ];
    output::table(head, 2, &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_has_no_size_and_one_that_fails_is_an_error() {
        let dir = TempDir::new().unwrap();
        let missing = Peer::filter("", "s2sfs-no-such-program", &[]);
        assert!(missing.size(b"text", dir.path()).unwrap().is_none());
        assert!(
            Peer::filter("", "false", &[])
                .size(b"text", dir.path())
                .is_err()
        );
        let cat = Peer::filter("", "cat", &[]);
        assert_eq!(cat.size(&[1; 70_000], dir.path()).unwrap(), Some(70_000));
    }
}
