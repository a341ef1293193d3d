//! An append-only sequence of records over segments: the journal, or the settled blocks.
//!
//! Lock order: `writer`, then `gate`, then the locks of [`Log`].

use std::sync::Arc;

use crate::sync::{Condvar, Mutex};

use super::record::{MAX_BODY, Place, RecordHeader};
use super::segment::{LOG_DIR, SEGMENT_HEADER_LEN, SegmentKind, SegmentName, encode_header};
use super::segments::{Log, Position};
use super::storage::StorageFile;
use super::{Result, StoreError};
use crate::fault;

pub(crate) struct Stream {
    kind: SegmentKind,
    log: Arc<Log>,
    writer: Mutex<Option<Active>>,
    gate: Mutex<Gate>,
    synced: Condvar,
}

/// The segment that is being appended to.
struct Active {
    name: SegmentName,
    file: Arc<dyn StorageFile>,
    len: u64,
}

struct Gate {
    /// Everything before this is durable.
    durable: Position,
    /// Somebody is syncing; others wait for the outcome instead of syncing too.
    busy: bool,
}

impl Stream {
    /// A stream without a segment; one is created by the first append.
    pub(crate) fn new(kind: SegmentKind, log: Arc<Log>) -> Stream {
        let gate = Gate {
            durable: Position::default(),
            busy: false,
        };
        Stream {
            kind,
            log,
            writer: Mutex::new(None),
            gate: Mutex::new(gate),
            synced: Condvar::new(),
        }
    }

    /// Continues a segment whose `len` bytes are all durable.
    pub(crate) fn resume(&self, name: SegmentName, file: Arc<dyn StorageFile>, len: u64) {
        *self.writer.lock() = Some(Active { name, file, len });
        self.gate.lock().durable = Position {
            seq: name.seq,
            offset: len,
        };
    }

    /// The segment that is being appended to.
    pub(crate) fn active_seq(&self) -> Option<u64> {
        self.writer.lock().as_ref().map(|active| active.name.seq)
    }

    /// Where the next record will lie at the earliest.
    pub(crate) fn end(&self) -> Position {
        match &*self.writer.lock() {
            Some(active) => Position {
                seq: active.name.seq,
                offset: active.len,
            },
            None => Position {
                seq: self.log.peek_seq(),
                offset: 0,
            },
        }
    }

    pub(crate) fn is_durable(&self, end: Position) -> bool {
        self.gate.lock().durable >= end
    }

    /// Appends one record and returns where it lies and its length. `body` is called with the number of bytes of
    /// the segment that are known to be durable. With `live`, the record counts as live in its
    /// segment before anybody else can see the segment. If the disk is full, nothing has happened.
    pub(crate) fn append(
        &self,
        mut header: RecordHeader,
        body: &dyn Fn(u64) -> Vec<u8>,
        payload: &[u8],
        live: bool,
    ) -> Result<(Position, u64)> {
        let mut writer = self.writer.lock();
        self.log.check_writable()?;
        let bound = payload.len() as u64 + body(u64::MAX).len() as u64;
        if bound > u64::from(MAX_BODY) {
            return Err(StoreError::Invalid(format!("a record of {bound} bytes")));
        }
        let active = self.room_for(&mut writer, bound, header.version)?;
        let durable = self.gate.lock().durable;
        let head = body(if durable.seq == active.name.seq {
            durable.offset
        } else {
            0
        });
        header.body_len = (head.len() + payload.len()) as u32;
        let at = Position {
            seq: active.name.seq,
            offset: active.len,
        };
        let place = Place {
            store: self.log.uuid,
            seq: at.seq,
            offset: at.offset,
        };
        let bytes = header.encode(place, &[&head, payload]);
        self.write(active, &[&bytes, &head, payload])?;
        active.len += header.record_len();
        self.log.set_len(at.seq, active.len);
        if live {
            self.log.add_live(at.seq, header.record_len());
        }
        Ok((at, header.record_len()))
    }

    /// Writes at the end. On failure the file is cut to its old length; where that fails too, or
    /// the failure was no lack of space, the store stops.
    fn write(&self, active: &Active, parts: &[&[u8]]) -> Result<()> {
        let path = active.name.path();
        let Err(error) = active
            .file
            .write_at(active.len, parts)
            .map_err(StoreError::io("write", &path))
        else {
            return Ok(());
        };
        if fault::planted("half-write-left") && error.is_no_space() {
            return Err(error);
        }
        if let Err(cut) = active.file.truncate(active.len) {
            self.log.fail(StoreError::io("truncate", &path)(cut));
        } else if !error.is_no_space() {
            self.log.fail(StoreError::Invalid(error.to_string()));
        }
        Err(error)
    }

    /// The active segment, after a change to a new one if the record would make it too long.
    fn room_for<'a>(
        &self,
        writer: &'a mut Option<Active>,
        body: u64,
        lsn: u64,
    ) -> Result<&'a mut Active> {
        let full = |active: &Active| {
            active.len > SEGMENT_HEADER_LEN && active.len + body > self.log.segment_bytes
        };
        if writer.as_ref().is_none_or(full) {
            self.seal(writer)?;
            *writer = Some(self.create(lsn)?);
        }
        writer
            .as_mut()
            .ok_or_else(|| StoreError::Invalid("no active segment".into()))
    }

    /// Makes the active segment durable and closes it. A segment is never followed by another one
    /// of its stream before it is durable: recovery relies on that.
    fn seal(&self, writer: &mut Option<Active>) -> Result<()> {
        let Some(active) = writer.as_ref() else {
            return Ok(());
        };
        let path = active.name.path();
        if !fault::planted("sealed-without-sync") {
            active
                .file
                .sync_data()
                .map_err(|e| self.log.fail(StoreError::io("fdatasync", &path)(e)))?;
        }
        let mut gate = self.gate.lock();
        gate.durable = gate.durable.max(Position {
            seq: active.name.seq,
            offset: active.len,
        });
        *writer = None;
        Ok(())
    }

    fn create(&self, lsn: u64) -> Result<Active> {
        let name = SegmentName {
            seq: self.log.take_seq(),
            kind: self.kind,
        };
        let path = name.path();
        let file = self
            .log
            .storage
            .create(&path)
            .map_err(StoreError::io("create", &path))?;
        let header = encode_header(name, self.log.uuid, lsn);
        let written = file
            .write_at(0, &[&header])
            .and_then(|()| match fault::planted("directory-not-synced") {
                true => Ok(()),
                false => self.log.storage.sync_dir(LOG_DIR),
            })
            .map_err(StoreError::io("write", &path));
        if let Err(error) = written {
            // Durably, because recovery accepts only the last segment without a whole header.
            let storage = &self.log.storage;
            if let Err(left) = storage
                .unlink(&path)
                .and_then(|()| storage.sync_dir(LOG_DIR))
            {
                self.log.fail(StoreError::io("unlink", &path)(left));
            }
            return Err(error);
        }
        self.log.add_segment(name, SEGMENT_HEADER_LEN);
        self.log.remember_file(name.seq, file.clone());
        Ok(Active {
            name,
            file,
            len: SEGMENT_HEADER_LEN,
        })
    }

    /// Ends the active segment; the next append begins a new one. Durable afterwards.
    pub(crate) fn rotate(&self) -> Result<()> {
        self.seal(&mut self.writer.lock())
    }

    /// Makes everything appended before the call durable. Concurrent callers share one fdatasync.
    pub(crate) fn sync(&self) -> Result<()> {
        let target = match &*self.writer.lock() {
            Some(active) => Position {
                seq: active.name.seq,
                offset: active.len,
            },
            None => return Ok(()),
        };
        let mut gate = self.gate.lock();
        loop {
            if gate.durable >= target {
                return Ok(());
            }
            self.log.check_writable()?;
            if !gate.busy {
                break;
            }
            self.synced.wait(&mut gate);
        }
        gate.busy = true;
        drop(gate);
        let outcome = self.sync_now();
        let mut gate = self.gate.lock();
        gate.busy = false;
        if let Ok(durable) = outcome {
            gate.durable = gate.durable.max(durable);
        }
        self.synced.notify_all();
        outcome.map(|_| ())
    }

    /// Syncs the active segment and returns what is durable by that.
    fn sync_now(&self) -> Result<Position> {
        let (file, name, len) = match &*self.writer.lock() {
            Some(active) => (active.file.clone(), active.name, active.len),
            // Sealed since the target was taken, and so durable.
            None => return Ok(self.gate.lock().durable),
        };
        let path = name.path();
        let skipped = match self.kind {
            SegmentKind::Journal => fault::planted("journal-sync-skipped"),
            _ => fault::planted("block-sync-skipped"),
        };
        if !skipped && let Err(error) = file.sync_data() {
            let error = StoreError::io("fdatasync", &path)(error);
            return Err(match fault::planted("failed-sync-forgotten") {
                true => error,
                false => self.log.fail(error),
            });
        }
        Ok(Position {
            seq: name.seq,
            offset: len,
        })
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod shuttle_tests {
    use super::super::record::RecordKind;
    use super::super::simulated::SimStorage;
    use super::*;
    use shuttle::thread;
    use uuid::Uuid;

    /// Three threads append and sync at once, in segments that hold two records.
    fn run() {
        let storage = SimStorage::new();
        let log = Log::new(Arc::new(storage.clone()), Uuid::nil(), 300, false);
        let stream = Arc::new(Stream::new(SegmentKind::Journal, Arc::new(log)));
        let before = storage.operations();
        let writers: Vec<_> = (0..3u64)
            .map(|number| {
                let stream = stream.clone();
                thread::spawn(move || {
                    let header = RecordHeader {
                        kind: RecordKind::Transaction,
                        tag: 0,
                        body_len: 0,
                        object: number,
                        version: number,
                    };
                    let append = stream.append(header, &|_| vec![7], &[9; 80], false);
                    let (at, len) = append.unwrap();
                    stream.sync().unwrap();
                    let end = Position {
                        seq: at.seq,
                        offset: at.offset + len,
                    };
                    assert!(stream.is_durable(end), "sync returned too early");
                    at
                })
            })
            .collect();
        let places: Vec<Position> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        assert!(storage.operations() > before);
        storage.crash(5);
        for at in places {
            let name = SegmentName {
                seq: at.seq,
                kind: SegmentKind::Journal,
            };
            let bytes = storage.contents(&name.path()).unwrap();
            assert!(
                bytes.len() as u64 > at.offset + 100,
                "a synced record is lost"
            );
        }
    }

    #[test]
    fn shuttle_a_sync_that_returns_has_made_everything_before_it_durable() {
        shuttle::check_random(run, 3000);
        shuttle::check_pct(run, 1000, 3);
    }
}
