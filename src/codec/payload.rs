//! The header that every payload begins with.

use std::ops::Range;
use std::sync::Arc;

use super::latents::Reading;
use super::model_codec::SPAN;
use super::{CodecError, CodecId, MAX_RAW_LEN, Result};

/// The history of a block: a range of the decoded bytes of another block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnchorRange {
    pub block: u64,
    pub range: Range<u32>,
}

/// What a payload's header says.
#[derive(Debug, Clone)]
pub struct Layout {
    pub codec: CodecId,
    /// Bytes that the payload decodes to.
    pub raw_len: u32,
    /// The decoded bytes of each group: consecutive, not empty, together `0..raw_len`.
    pub groups: Vec<Range<u32>>,
    pub anchor: Option<AnchorRange>,
    /// Where the latents lie in the payload, if there are any.
    pub(super) latents: Option<Range<usize>>,
    pub(super) reading: Arc<Reading>,
    /// Chunks of up to 128 tokens, all groups together; 0 where the codec has none.
    pub chunks: u32,
    /// The model that decoding needs, by the first half of its hash.
    pub model: Option<[u8; 8]>,
    /// Where each group of a model payload lies.
    pub(super) parts: Vec<Part>,
    /// CRC-32C of the decoded bytes, where the codec stores one.
    pub(super) check: Option<u32>,
    /// Where the coded bytes begin in the payload.
    pub(super) body: usize,
}

impl Layout {
    /// Bytes of the coded latents; 0 if there are none.
    pub fn latent_bytes(&self) -> usize {
        self.latents.as_ref().map_or(0, ExactSizeIterator::len)
    }

    /// Bytes of the code of all groups of a model payload, without latents, headers and checksums.
    pub fn code_bytes(&self) -> usize {
        self.parts.iter().map(|part| part.code.len()).sum()
    }
}

/// Where the checksums and the code of a group lie in the payload.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub checks: Range<usize>,
    pub code: Range<usize>,
}

/// Appends `value` as a little-endian base-128 number.
pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Reads from the front of untrusted bytes.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    pos: usize,
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, pos: 0 }
    }

    pub fn pos(&self) -> usize {
        self.pos
    }

    pub fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let end = self
            .pos
            .checked_add(len)
            .filter(|&end| end <= self.bytes.len());
        let end = end.ok_or_else(|| CodecError::Damaged("payload is cut short".into()))?;
        let taken = &self.bytes[self.pos..end];
        self.pos = end;
        Ok(taken)
    }

    pub fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    pub fn u32_le(&mut self) -> Result<u32> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub fn varint(&mut self) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(CodecError::Damaged("number is too long".into()))
    }

    /// A varint of at most `most`.
    pub fn bounded(&mut self, what: &str, most: usize) -> Result<u32> {
        let value = self.varint()?;
        if value > most as u64 {
            return Err(CodecError::Damaged(format!(
                "{what} is {value}, limit {most}"
            )));
        }
        Ok(value as u32)
    }
}

/// Starts a payload: codec id, decoded length and, if given, the checksum of the decoded bytes.
pub(super) fn start(codec: CodecId, raw: &[u8], with_check: bool) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len() / 2 + 16);
    out.push(codec as u8);
    put_varint(&mut out, raw.len() as u64);
    if with_check {
        out.extend_from_slice(&crc32c::crc32c(raw).to_le_bytes());
    }
    out
}

/// Parses the header of any payload.
pub(super) fn parse(payload: &[u8]) -> Result<Layout> {
    let mut reader = Reader::new(payload);
    let id = reader.byte()?;
    let codec = CodecId::from_byte(id)
        .ok_or_else(|| CodecError::Damaged(format!("codec {id} is unknown")))?;
    let raw_len = reader.bounded("decoded length", MAX_RAW_LEN)?;
    let whole = if raw_len == 0 {
        vec![]
    } else {
        std::iter::once(0..raw_len).collect()
    };
    let mut layout = Layout {
        codec,
        raw_len,
        groups: whole,
        anchor: None,
        latents: None,
        reading: Arc::default(),
        chunks: 0,
        model: None,
        parts: vec![],
        check: None,
        body: 0,
    };
    match codec {
        CodecId::Raw => {}
        CodecId::Lz4 => layout.check = Some(reader.u32_le()?),
        CodecId::Zstd => {
            layout.check = Some(reader.u32_le()?);
            if flag(&mut reader)? {
                layout.model = Some(short_hash(&mut reader)?);
            }
        }
        CodecId::Model => parse_model(&mut reader, payload.len(), &mut layout)?,
    }
    layout.body = reader.pos();
    if codec == CodecId::Raw && payload.len() - layout.body != raw_len as usize {
        return Err(CodecError::Damaged(
            "raw payload has the wrong length".into(),
        ));
    }
    Ok(layout)
}

fn flag(reader: &mut Reader) -> Result<bool> {
    match reader.byte()? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(CodecError::Damaged(format!("flags {other} are unknown"))),
    }
}

fn short_hash(reader: &mut Reader) -> Result<[u8; 8]> {
    let mut hash = [0; 8];
    hash.copy_from_slice(reader.take(8)?);
    Ok(hash)
}

/// Flags of a model payload: what its header names.
pub(super) const ANCHOR: u8 = 1;
pub(super) const LATENTS: u8 = 2;

/// The header of a model payload: model, anchor, latents, group table.
fn parse_model(reader: &mut Reader, payload_len: usize, layout: &mut Layout) -> Result<()> {
    layout.model = Some(short_hash(reader)?);
    let flags = reader.byte()?;
    if flags & !(ANCHOR | LATENTS) != 0 {
        return Err(CodecError::Damaged(format!("flags {flags} are unknown")));
    }
    if flags & ANCHOR != 0 {
        let block = reader.varint()?;
        let start = reader.bounded("anchor position", MAX_RAW_LEN)?;
        let len = reader.bounded("anchor length", MAX_RAW_LEN)?;
        layout.anchor = Some(AnchorRange {
            block,
            range: start..start + len,
        });
    }
    if flags & LATENTS != 0 {
        let len = reader.bounded("length of the latents", payload_len)? as usize;
        let start = reader.pos();
        reader.take(len)?;
        layout.latents = Some(start..start + len);
    }
    let raw_len = layout.raw_len;
    let count = reader.bounded("number of groups", raw_len as usize)? as usize;
    let mut codes = Vec::with_capacity(count);
    layout.groups.clear();
    let mut at = 0u32;
    for index in 0..count {
        // a chunk has at least one byte, so all groups together have no more chunks than bytes
        let most = (raw_len - layout.chunks) as usize;
        layout.chunks += reader.bounded("chunks of a group", most)?;
        let left = (raw_len - at) as usize;
        if index + 1 < count {
            let len = reader.bounded("length of a group", left)?;
            layout.groups.push(at..at + len);
            at += len;
            codes.push(reader.bounded("coded length of a group", payload_len)? as usize);
        } else {
            layout.groups.push(at..raw_len);
            at = raw_len;
        }
    }
    if at != raw_len || layout.groups.iter().any(|group| group.is_empty()) {
        return Err(CodecError::Damaged("groups do not cover the extent".into()));
    }
    place_parts(reader, payload_len, &codes, layout)
}

/// Finds the checksums and the code of each group behind the header.
fn place_parts(
    reader: &mut Reader,
    payload_len: usize,
    codes: &[usize],
    layout: &mut Layout,
) -> Result<()> {
    let spans = |group: &Range<u32>| ((group.end - group.start) as usize).div_ceil(SPAN);
    let checks = 2 * layout.groups.iter().map(spans).sum::<usize>();
    let mut check_at = reader.pos();
    let mut code_at = check_at + checks;
    reader.take(checks)?;
    for (index, group) in layout.groups.iter().enumerate() {
        let code_end = codes.get(index).map_or(payload_len, |len| code_at + len);
        if code_end > payload_len || code_at > code_end {
            return Err(CodecError::Damaged("a group is cut short".into()));
        }
        let check_end = check_at + 2 * spans(group);
        layout.parts.push(Part {
            checks: check_at..check_end,
            code: code_at..code_end,
        });
        (check_at, code_at) = (check_end, code_end);
    }
    Ok(())
}

/// Compares decoded bytes with the length and checksum that the header promised.
pub(super) fn verify(raw: Vec<u8>, layout: &Layout) -> Result<Vec<u8>> {
    if raw.len() != layout.raw_len as usize {
        return Err(CodecError::Damaged(
            "decoded length differs from the header".into(),
        ));
    }
    match layout.check {
        Some(check) if crc32c::crc32c(&raw) != check => Err(CodecError::Damaged(
            "checksum of the decoded bytes differs".into(),
        )),
        _ => Ok(raw),
    }
}
