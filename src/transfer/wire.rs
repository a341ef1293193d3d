//! The stream that carries a store through a pipe: frames with checksums. The bytes are in docs/format.md.

use std::io::{self, Read, Write};

use thiserror::Error;

use crate::store::StoreError;

const MAGIC: [u8; 8] = *b"s2sfsstr";
/// Version of the stream, apart from that of the store in it.
pub const STREAM_VERSION: u32 = 1;
const HEAD_LEN: usize = 16;
const FRAME_HEAD: usize = 21;
/// Bytes in front of the checksums of a frame.
const FIELDS: usize = 13;
/// No payload is longer.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// Why a stream could not be written or read.
#[derive(Debug, Error)]
pub enum WireError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("this is no stream of s2sfs send")]
    Foreign,
    #[error("the stream has version {found}, this program reads up to {STREAM_VERSION}")]
    Newer { found: u32 },
    #[error("the stream ends too early, behind {0} whole frames")]
    Truncated(u64),
    #[error("the stream is damaged at frame {frame}: {why}")]
    Damaged { frame: u64, why: String },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("{0}")]
    Refused(String),
    #[error("{0} is in use by another process")]
    Busy(String),
    #[error("interrupted")]
    Interrupted,
}

pub type Result<T> = std::result::Result<T, WireError>;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// Number of files (8), their length (8), and the description of the store; the first frame.
    Store = 1,
    /// Length (8) and path of the file whose data follows.
    File = 2,
    Data = 3,
    /// Hash of the file that has ended.
    FileEnd = 4,
    /// Hash of the hashes of all files; the last frame.
    End = 5,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<FrameKind> {
        Some(match byte {
            1 => FrameKind::Store,
            2 => FrameKind::File,
            3 => FrameKind::Data,
            4 => FrameKind::FileEnd,
            5 => FrameKind::End,
            _ => return None,
        })
    }
}

/// Writes frames.
pub struct FrameWriter<'a> {
    out: &'a mut dyn Write,
    number: u64,
}

impl<'a> FrameWriter<'a> {
    /// Writes the head of a stream.
    pub fn new(out: &'a mut dyn Write) -> Result<FrameWriter<'a>> {
        let mut head = [0; HEAD_LEN];
        head[..8].copy_from_slice(&MAGIC);
        head[8..12].copy_from_slice(&STREAM_VERSION.to_le_bytes());
        let crc = crc32c::crc32c(&head[..12]);
        head[12..].copy_from_slice(&crc.to_le_bytes());
        out.write_all(&head)?;
        Ok(FrameWriter { out, number: 0 })
    }

    /// Writes one frame; its payload is that of `parts`, one after the other.
    pub fn frame(&mut self, kind: FrameKind, parts: &[&[u8]]) -> Result<()> {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        if len as usize > MAX_PAYLOAD {
            return Err(WireError::Refused(format!("a frame of {len} bytes")));
        }
        let mut head = [0; FRAME_HEAD];
        head[0] = kind as u8;
        head[1..5].copy_from_slice(&len.to_le_bytes());
        head[5..FIELDS].copy_from_slice(&self.number.to_le_bytes());
        let mut crc = crc32c::crc32c(&head[..FIELDS]);
        head[FIELDS..17].copy_from_slice(&crc.to_le_bytes());
        for part in parts {
            crc = crc32c::crc32c_append(crc, part);
        }
        head[17..].copy_from_slice(&crc.to_le_bytes());
        self.out.write_all(&head)?;
        for part in parts {
            self.out.write_all(part)?;
        }
        self.number += 1;
        Ok(())
    }

    pub fn flush(&mut self) -> Result<()> {
        Ok(self.out.flush()?)
    }
}

/// Reads frames, in order, and verifies them.
pub struct FrameReader<'a> {
    input: &'a mut dyn Read,
    number: u64,
    payload: Vec<u8>,
}

impl<'a> FrameReader<'a> {
    /// Reads the head of a stream.
    pub fn new(input: &'a mut dyn Read) -> Result<FrameReader<'a>> {
        let mut head = [0; HEAD_LEN];
        let got = read_full(input, &mut head)?;
        if got < 8 || head[..8] != MAGIC {
            return Err(WireError::Foreign);
        }
        if got < HEAD_LEN {
            return Err(WireError::Truncated(0));
        }
        if crc32c::crc32c(&head[..12]).to_le_bytes() != head[12..] {
            let why = "wrong checksum of its head".into();
            return Err(WireError::Damaged { frame: 0, why });
        }
        let found = u32::from_le_bytes([head[8], head[9], head[10], head[11]]);
        if found > STREAM_VERSION {
            return Err(WireError::Newer { found });
        }
        Ok(FrameReader {
            input,
            number: 0,
            payload: Vec::new(),
        })
    }

    /// An error that names the frame that was read last.
    pub fn damaged(&self, why: impl Into<String>) -> WireError {
        WireError::Damaged {
            frame: self.number.saturating_sub(1),
            why: why.into(),
        }
    }

    /// The next frame.
    pub fn read(&mut self) -> Result<(FrameKind, &[u8])> {
        let whole = self.number;
        self.number += 1;
        let mut head = [0; FRAME_HEAD];
        if read_full(self.input, &mut head)? < FRAME_HEAD {
            return Err(WireError::Truncated(whole));
        }
        let field =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let crc = crc32c::crc32c(&head[..FIELDS]);
        if crc != field(FIELDS) {
            return Err(self.damaged("wrong checksum of a frame's head"));
        }
        let len = field(1) as usize;
        if len > MAX_PAYLOAD {
            return Err(self.damaged("a frame is said to be longer than any"));
        }
        if head[5..FIELDS] != whole.to_le_bytes() {
            return Err(self.damaged("frames are missing, or not in order"));
        }
        let Some(kind) = FrameKind::from_byte(head[0]) else {
            return Err(self.damaged("a frame of an unknown kind"));
        };
        self.payload.resize(len, 0);
        if read_full(self.input, &mut self.payload)? < len {
            return Err(WireError::Truncated(whole));
        }
        if crc32c::crc32c_append(crc, &self.payload) != field(17) {
            return Err(self.damaged("wrong checksum"));
        }
        Ok((kind, &self.payload))
    }

    /// Err if anything follows.
    pub fn finish(self) -> Result<()> {
        match read_full(self.input, &mut [0])? {
            0 => Ok(()),
            _ => Err(WireError::Damaged {
                frame: self.number,
                why: "something follows its end".into(),
            }),
        }
    }
}

/// Fills `buf`; fewer bytes only at the end of the input.
fn read_full(input: &mut dyn Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match input.read(&mut buf[done..]) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
