//! A zip archive whose members are stored, not compressed: the container of `torch.save`.
//!
//! torch stores tensors so that they can be mapped into memory, so this is all of the format that is needed, and it
//! reads the directory in place: what an archive claims about counts and sizes allocates nothing. (The `zip` crate
//! allocates by those claims, and looks through a whole file for a directory.)

use std::collections::BTreeMap;

/// The members of an archive: where each one's bytes lie.
#[derive(Debug)]
pub(crate) struct StoredZip<'a> {
    members: BTreeMap<&'a str, (usize, usize)>,
}

const END: &[u8] = b"PK\x05\x06";
const END_LEN: usize = 22;
const END_64: &[u8] = b"PK\x06\x06";
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const ENTRY: &[u8] = b"PK\x01\x02";
const ENTRY_LEN: usize = 46;
const MEMBER: &[u8] = b"PK\x03\x04";
const MEMBER_LEN: usize = 30;
/// In a 32-bit field: the number stands in the entry's 64-bit extension.
const ELSEWHERE: u64 = 0xffff_ffff;

impl<'a> StoredZip<'a> {
    /// Whether the bytes begin as an archive does.
    pub(crate) fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(MEMBER)
    }

    /// Reads the directory of an archive.
    ///
    /// # Errors
    ///
    /// One sentence: what about the archive is broken, or not supported.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let (count, start, end) = directory(bytes).ok_or("the zip archive has no directory: the file is cut short")?;
        if start > end || end > bytes.len() || count > (end - start) / ENTRY_LEN {
            return Err("the zip archive's directory lies outside the file".into());
        }
        let mut members = BTreeMap::new();
        let mut at = start;
        for _ in 0..count {
            let (name, place, next) = entry(&bytes[..end], at, start)?;
            if members.insert(name, place).is_some() {
                return Err(format!("the zip archive has `{}` twice", name.escape_default()));
            }
            at = next;
        }
        // Members that lie over each other would let a small file claim any size.
        let mut places: Vec<(usize, usize)> = members.values().copied().filter(|(_, len)| *len > 0).collect();
        places.sort_unstable();
        if places.windows(2).any(|pair| pair[0].0 + pair[0].1 > pair[1].0) {
            return Err("the zip archive's members overlap".into());
        }
        Ok(StoredZip { members })
    }

    /// Where a member lies: its first byte, and how many there are.
    pub(crate) fn member(&self, name: &str) -> Option<(usize, usize)> {
        self.members.get(name).copied()
    }

    /// The members' names.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.members.keys().copied()
    }
}

/// How many entries the directory has, and where it starts and ends.
fn directory(bytes: &[u8]) -> Option<(usize, usize, usize)> {
    // The last record ends the file, but for a comment of at most 65535 bytes.
    let first = bytes.len().saturating_sub(END_LEN + 0xffff);
    let at = (first..=bytes.len().checked_sub(END_LEN)?).rev().find(|at| {
        bytes[*at..].starts_with(END) && number(bytes, at + 20, 2) == Some((bytes.len() - at - END_LEN) as u64)
    })?;
    let (count, len, start) = (number(bytes, at + 10, 2)?, number(bytes, at + 12, 4)?, number(bytes, at + 16, 4)?);
    let place = |count: u64, start: u64, len: u64| {
        let start = usize::try_from(start).ok()?;
        Some((usize::try_from(count).ok()?, start, start.checked_add(usize::try_from(len).ok()?)?))
    };
    if count != 0xffff && len != ELSEWHERE && start != ELSEWHERE {
        return place(count, start, len);
    }
    let locator = at.checked_sub(20).filter(|locator| bytes[*locator..].starts_with(LOCATOR_64))?;
    let at = usize::try_from(number(bytes, locator + 8, 8)?).ok()?;
    bytes.get(at..)?.starts_with(END_64).then_some(())?;
    let field = |offset: usize| number(bytes, at.checked_add(offset)?, 8);
    place(field(32)?, field(48)?, field(40)?)
}

/// An entry of the directory: its name, where its bytes lie, and where the next entry begins.
fn entry(bytes: &[u8], at: usize, directory: usize) -> Result<(&str, (usize, usize), usize), String> {
    let torn = || "the zip archive's directory is broken".to_string();
    if !bytes.get(at..).is_some_and(|rest| rest.starts_with(ENTRY)) {
        return Err(torn());
    }
    let field = |offset: usize, width: usize| number(bytes, at + offset, width).ok_or_else(torn);
    let (flags, method) = (field(8, 2)?, field(10, 2)?);
    let (mut stored, mut size, mut header) = (field(20, 4)?, field(24, 4)?, field(42, 4)?);
    let (name_len, extra_len, comment_len) = (field(28, 2)?, field(30, 2)?, field(32, 2)?);
    let name_at = at + ENTRY_LEN;
    let extra_at = name_at + name_len as usize;
    let next = extra_at + extra_len as usize + comment_len as usize;
    let name = bytes.get(name_at..extra_at).ok_or_else(torn)?;
    let name = std::str::from_utf8(name).map_err(|_| "the zip archive has a name that is not UTF-8")?;
    if method != 0 || flags & 1 != 0 {
        let how = if flags & 1 != 0 { "encrypted" } else { "compressed" };
        return Err(format!("`{}` in the zip archive is {how}; torch.save stores its members", name.escape_default()));
    }
    let mut extra = bytes.get(extra_at..extra_at + extra_len as usize).ok_or_else(torn)?;
    while let (Some(kind), Some(len)) = (number(extra, 0, 2), number(extra, 2, 2)) {
        let body = extra.get(4..4 + len as usize).ok_or_else(torn)?;
        if kind == 1 {
            let mut place = 0;
            for value in [&mut size, &mut stored, &mut header] {
                if *value == ELSEWHERE {
                    *value = number(body, place, 8).ok_or_else(torn)?;
                    place += 8;
                }
            }
        }
        extra = &extra[4 + len as usize..];
    }
    let outside = || format!("`{}` in the zip archive lies outside it", name.escape_default());
    let header = usize::try_from(header).map_err(|_| outside())?;
    if !bytes.get(header..directory).is_some_and(|rest| rest.starts_with(MEMBER)) {
        return Err(outside());
    }
    let skip = |offset: usize| number(bytes, header + offset, 2).ok_or_else(outside);
    let start = header + MEMBER_LEN + skip(26)? as usize + skip(28)? as usize;
    let len = usize::try_from(size).map_err(|_| outside())?;
    match start.checked_add(len) {
        Some(end) if stored == size && end <= directory => Ok((name, (start, len), next)),
        _ => Err(outside()),
    }
}

/// A little-endian number of `width` bytes.
fn number(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(width)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of one member, `a`, holding `data`, of the sizes claimed.
    fn archive(data: &[u8], size: u32, method: u16, entries: u16) -> Vec<u8> {
        let mut bytes = [MEMBER, &[0; 22], &[1, 0, 0, 0], b"a", data].concat();
        let directory = bytes.len() as u32;
        bytes.extend([ENTRY, &[0; 6], &method.to_le_bytes(), &[0; 8]].concat());
        bytes.extend([size.to_le_bytes(), size.to_le_bytes(), [1, 0, 0, 0]].concat());
        bytes.extend([0; 14]);
        bytes.extend(b"a");
        let len = bytes.len() as u32 - directory;
        bytes.extend([END, &[0; 4], &entries.to_le_bytes(), &entries.to_le_bytes()].concat());
        bytes.extend([len.to_le_bytes(), directory.to_le_bytes()].concat());
        bytes.extend([0, 0]);
        bytes
    }

    #[test]
    fn members_are_where_they_are() {
        let bytes = archive(b"hello", 5, 0, 1);
        let zip = StoredZip::read(&bytes).unwrap();
        let (start, len) = zip.member("a").unwrap();
        assert_eq!(&bytes[start..start + len], b"hello");
        assert_eq!(zip.names().collect::<Vec<_>>(), ["a"]);
        assert_eq!(zip.member("b"), None);
    }

    #[test]
    fn a_lying_archive_is_refused() {
        let error = |bytes: &[u8]| StoredZip::read(bytes).unwrap_err();
        assert!(error(&archive(b"hello", 6, 0, 1)).contains("lies outside"));
        assert!(error(&archive(b"hello", u32::MAX, 0, 1)).contains("lies outside"));
        assert!(error(&archive(b"hello", 5, 8, 1)).contains("compressed"));
        assert!(error(&archive(b"hello", 5, 0, 0xfffe)).contains("outside the file"));
        assert!(error(&archive(b"hello", 5, 0, 0xffff)).contains("no directory"));
        assert!(error(b"PK\x03\x04").contains("cut short"));
        let whole = archive(b"hello", 5, 0, 1);
        for len in 0..whole.len() {
            assert!(StoredZip::read(&whole[..len]).is_err(), "{len}");
        }
    }
}
