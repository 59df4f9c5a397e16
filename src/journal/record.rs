//! How a record lies in a segment, and how records are found in bytes that may be damaged.
//!
//! ```text
//! mark (4) | length of the payload (4) | CRC32C of all that follows and the length (4) | kind (1) | version (1) | payload
//! ```
//!
//! Numbers are little-endian. The mark holds a byte that UTF-8 never has, so that no text
//! inside a payload looks like the beginning of a record. After damage the next mark with a
//! record that is whole is looked for: what is damaged is lost alone.

use memchr::memmem;

/// What every record begins with.
const MARK: [u8; 4] = [0xff, b'A', b'J', 0xfe];

/// What is before the payload.
pub(super) const HEAD: usize = 14;

/// Longest payload. A length beyond it is damage.
pub(super) const LONGEST: usize = 1 << 20;

/// What a record says of its entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An entry begins.
    Begin,
    /// An entry ends.
    Finish,
    /// About the process that writes: its [note](super::Journal::note).
    Note,
}

impl Kind {
    const fn code(self) -> u8 {
        match self {
            Self::Begin => 1,
            Self::Finish => 2,
            Self::Note => 3,
        }
    }

    const fn of(code: u8) -> Option<Self> {
        match code {
            1 => Some(Self::Begin),
            2 => Some(Self::Finish),
            3 => Some(Self::Note),
            _ => None,
        }
    }
}

/// A record that is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// What it says of its entry.
    pub kind: Kind,
    /// The version of its payload's encoding.
    pub version: u8,
    /// The owner's bytes.
    pub payload: &'a [u8],
}

/// Appends a record to `out`; `payload` appends its bytes. `false`, and nothing appended, if
/// they are too many.
pub(super) fn write(out: &mut Vec<u8>, kind: Kind, version: u8, payload: impl FnOnce(&mut Vec<u8>)) -> bool {
    let at = out.len();
    out.extend_from_slice(&MARK);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[kind.code(), version]);
    payload(out);
    let length = out.len().saturating_sub(at + HEAD);
    let (Ok(short), true) = (u32::try_from(length), length <= LONGEST) else {
        out.truncate(at);
        return false;
    };
    let length = short.to_le_bytes();
    let crc = checksum(length, out.get(at + 12..).unwrap_or_default()).to_le_bytes();
    if let Some(head) = out.get_mut(at + 4..at + 12) {
        head.copy_from_slice(&[length[0], length[1], length[2], length[3], crc[0], crc[1], crc[2], crc[3]]);
    }
    true
}

fn checksum(length: [u8; 4], rest: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), rest)
}

/// The record that `bytes` begin with, and its whole length.
fn parse(bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let (mark, rest) = bytes.split_first_chunk::<4>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let payload = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if *mark != MARK || payload > LONGEST {
        return None;
    }
    let body = rest.get(..payload + 2)?;
    if checksum(*length, body) != u32::from_le_bytes(*crc) {
        return None;
    }
    let (&[kind, version], payload) = body.split_first_chunk::<2>()?;
    Some((Record { kind: Kind::of(kind)?, version, payload }, HEAD + payload.len()))
}

/// What comes next in a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found<'a> {
    /// A record.
    Record(Record<'a>),
    /// Bytes between records that are none.
    Damaged {
        /// Where they begin.
        at: usize,
        /// How many.
        length: usize,
    },
    /// The beginning of a record that was being written; nobody was told that it is there.
    Torn {
        /// Where they begin.
        at: usize,
        /// How many.
        length: usize,
    },
}

/// Everything in `bytes`, in its order.
pub(super) fn read(bytes: &[u8]) -> impl Iterator<Item = Found<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..).filter(|rest| !rest.is_empty())?;
        if let Some((record, length)) = parse(rest) {
            at += length;
            return Some(Found::Record(record));
        }
        let marks = memmem::find_iter(rest.get(1..).unwrap_or_default(), &MARK).map(|mark| mark + 1);
        let next = marks.into_iter().find(|next| rest.get(*next..).is_some_and(|rest| parse(rest).is_some()));
        let begun = at;
        at += next.unwrap_or(rest.len());
        let length = at - begun;
        Some(match next {
            None if is_torn(rest) => Found::Torn { at: begun, length },
            _ => Found::Damaged { at: begun, length },
        })
    })
}

/// Whether `bytes`, behind which there is nothing, are a record as far as it was written, and not a whole one that is
/// damaged.
fn is_torn(bytes: &[u8]) -> bool {
    let head = || {
        let (mark, rest) = bytes.split_first_chunk::<4>()?;
        let (length, rest) = rest.split_first_chunk::<4>()?;
        Some((mark, length, rest.split_first_chunk::<4>()))
    };
    let Some((mark, length, rest)) = head() else {
        return bytes.starts_with(&MARK) || MARK.starts_with(bytes);
    };
    let missing = usize::try_from(u32::from_le_bytes(*length))
        .is_ok_and(|length| length <= LONGEST && bytes.len() < HEAD + length);
    let Some((crc, body)) = rest else { return *mark == MARK && missing };
    // Of a whole one, the length itself may be what is damaged.
    let length = u32::try_from(bytes.len().saturating_sub(HEAD)).unwrap_or(u32::MAX);
    *mark == MARK && missing && checksum(length.to_le_bytes(), body) != u32::from_le_bytes(*crc)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> Vec<(Kind, Vec<u8>)> {
        // A payload that holds a whole record as text could not, and empty ones.
        let mut nested = Vec::new();
        write(&mut nested, Kind::Finish, 9, |out| out.extend_from_slice(b"inside"));
        nested.remove(0);
        vec![
            (Kind::Note, b"who".to_vec()),
            (Kind::Begin, b"one".to_vec()),
            (Kind::Begin, nested),
            (Kind::Finish, Vec::new()),
            (Kind::Finish, vec![0xff; 33]),
        ]
    }

    fn file(records: &[(Kind, Vec<u8>)]) -> (Vec<u8>, Vec<usize>) {
        let (mut bytes, mut ends) = (Vec::new(), Vec::new());
        for (kind, payload) in records {
            assert!(write(&mut bytes, *kind, 1, |out| out.extend_from_slice(payload)));
            ends.push(bytes.len());
        }
        (bytes, ends)
    }

    fn whole(bytes: &[u8]) -> Vec<(Kind, Vec<u8>)> {
        let record = |found| match found {
            Found::Record(record) => Some((record.kind, record.payload.to_vec())),
            _ => None,
        };
        read(bytes).filter_map(record).collect()
    }

    #[test]
    fn the_layout_is_what_older_files_have() {
        let mut bytes = Vec::new();
        write(&mut bytes, Kind::Begin, 3, |out| out.extend_from_slice(b"ab"));
        assert_eq!(bytes, [0xff, b'A', b'J', 0xfe, 2, 0, 0, 0, 0xeb, 0x7c, 0xf8, 0x3a, 1, 3, b'a', b'b']);
    }

    #[test]
    fn a_payload_that_is_too_long_is_refused() {
        let mut bytes = vec![1];
        assert!(!write(&mut bytes, Kind::Begin, 1, |out| out.resize(out.len() + LONGEST + 1, 0)));
        assert_eq!(bytes, [1]);
        assert!(write(&mut bytes, Kind::Begin, 1, |out| out.resize(out.len() + LONGEST, 0)));
    }

    #[test]
    fn a_file_that_is_cut_anywhere_has_the_records_before_the_cut() {
        let records = records();
        let (bytes, ends) = file(&records);
        for cut in 0..bytes.len() {
            let kept = ends.iter().filter(|end| **end <= cut).count();
            assert_eq!(whole(&bytes[..cut]), records[..kept], "cut at {cut}");
            let torn = cut - ends.get(kept.wrapping_sub(1)).copied().unwrap_or(0);
            let last = read(&bytes[..cut]).last();
            assert_eq!(matches!(last, Some(Found::Torn { length, .. }) if length == torn), torn > 0, "cut at {cut}");
        }
    }

    #[test]
    fn a_bit_that_flips_costs_its_own_record_alone() {
        let records = records();
        let (bytes, ends) = file(&records);
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let hit = ends.iter().filter(|end| **end <= bit / 8).count();
            let mut left = records.clone();
            left.remove(hit);
            assert_eq!(whole(&bytes), left, "bit {bit}");
            let lost: usize = read(&bytes)
                .map(|found| match found {
                    Found::Record(_) => 0,
                    Found::Damaged { length, .. } => length,
                    Found::Torn { .. } => panic!("bit {bit}: it was whole"),
                })
                .sum();
            assert_eq!(lost, records[hit].1.len() + HEAD, "bit {bit}: all that is lost is told");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_are_read_to_their_end(bytes in proptest::collection::vec(
            prop_oneof![any::<u8>(), Just(0xff), Just(b'A'), Just(b'J'), Just(0xfe), Just(0)], 0..600,
        )) {
            let total: usize = read(&bytes).map(|found| match found {
                Found::Record(record) => HEAD + record.payload.len(),
                Found::Damaged { length, .. } | Found::Torn { length, .. } => length,
            }).sum();
            prop_assert_eq!(total, bytes.len());
        }

        #[test]
        fn records_are_found_whatever_stands_between_them(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..80), 1..8),
            noise in proptest::collection::vec(proptest::collection::vec(0_u8..0x80, 0..40), 8),
        ) {
            let mut bytes = Vec::new();
            for (payload, noise) in payloads.iter().zip(&noise) {
                bytes.extend_from_slice(noise);
                write(&mut bytes, Kind::Begin, 1, |out| out.extend_from_slice(payload));
            }
            let found: Vec<_> = whole(&bytes).into_iter().map(|(_, payload)| payload).collect();
            prop_assert_eq!(found, payloads);
        }
    }
}
