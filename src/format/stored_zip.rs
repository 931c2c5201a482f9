//! A zip archive whose members are stored, not compressed: the container of `torch.save`.
//!
//! torch stores tensors so that they can be mapped into memory, so this is all of the format that is needed, and it
//! reads the directory in place: what an archive claims about counts and sizes allocates nothing. (The `zip` crate
//! allocates by those claims, and searches a whole file for a directory.)

use std::collections::BTreeMap;
use std::ops::Range;

use super::error::quoted;
use super::FormatError;

/// The members of an archive: where each one's bytes lie.
#[derive(Debug)]
pub(crate) struct StoredZip<'a> {
    members: BTreeMap<&'a str, Range<usize>>,
}

const END: &[u8] = b"PK\x05\x06";
const END_LEN: usize = 22;
const END_64: &[u8] = b"PK\x06\x06";
const LOCATOR_64: &[u8] = b"PK\x06\x07";
const LOCATOR_64_LEN: usize = 20;
const ENTRY: &[u8] = b"PK\x01\x02";
const ENTRY_LEN: usize = 46;
const MEMBER: &[u8] = b"PK\x03\x04";
const MEMBER_LEN: usize = 30;
/// In a 32-bit field: the number stands in the entry's 64-bit extension.
const ELSEWHERE: u64 = 0xffff_ffff;

const DIRECTORY: &str = "the zip archive's directory";

impl<'a> StoredZip<'a> {
    /// Whether the bytes begin as an archive does.
    pub(crate) fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(MEMBER)
    }

    /// Reads the directory of an archive.
    ///
    /// # Errors
    ///
    /// What about the archive is broken, or not supported.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let (count, directory) = directory(bytes).ok_or(FormatError::Truncated { part: "the zip archive" })?;
        if directory.start > directory.end
            || directory.end > bytes.len()
            || count > (directory.end - directory.start) / ENTRY_LEN
        {
            return Err(FormatError::out_of_bounds(DIRECTORY, "the file"));
        }
        let mut members = BTreeMap::new();
        let mut extents = Vec::with_capacity(count);
        let mut position = directory.start;
        for _ in 0..count {
            let entry = entry(&bytes[..directory.end], position, directory.start)?;
            if members.insert(entry.name, entry.data.clone()).is_some() {
                return Err(FormatError::duplicate(format!("member `{}`", quoted(entry.name))));
            }
            extents.push((entry.header..entry.data.end, entry.name));
            position = entry.next;
        }
        // Members that lie over each other would let a small file claim any size.
        extents.sort_unstable_by_key(|(extent, _)| (extent.start, extent.end));
        if let Some(pair) = extents.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
            let member = |name: &str| format!("member `{}`", quoted(name));
            return Err(FormatError::Overlap { first: member(pair[0].1), second: member(pair[1].1) });
        }
        Ok(StoredZip { members })
    }

    /// Where a member's bytes lie.
    pub(crate) fn member(&self, name: &str) -> Option<Range<usize>> {
        self.members.get(name).cloned()
    }

    /// The members by name, in alphabetical order.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&'a str, Range<usize>)> + '_ {
        self.members.iter().map(|(name, data)| (*name, data.clone()))
    }
}

/// How many entries the directory has, and the bytes that it claims.
fn directory(bytes: &[u8]) -> Option<(usize, Range<usize>)> {
    // The last record ends the file, but for a comment of at most 65535 bytes.
    let first = bytes.len().saturating_sub(END_LEN + 0xffff);
    let record = (first..=bytes.len().checked_sub(END_LEN)?).rev().find(|position| {
        let comment = (bytes.len() - position - END_LEN) as u64;
        bytes[*position..].starts_with(END) && number(bytes, position + 20, 2) == Some(comment)
    })?;
    let field = |offset: usize, width: usize| number(bytes, record.checked_add(offset)?, width);
    let (count, len, start) = (field(10, 2)?, field(12, 4)?, field(16, 4)?);
    let place = |count: u64, start: u64, len: u64| {
        let (count, start, len) = (usize::try_from(count), usize::try_from(start), usize::try_from(len));
        let (count, start, len) = (count.ok()?, start.ok()?, len.ok()?);
        Some((count, start..start.checked_add(len)?))
    };
    if count != 0xffff && len != ELSEWHERE && start != ELSEWHERE {
        return place(count, start, len);
    }
    let locator = record.checked_sub(LOCATOR_64_LEN)?;
    bytes[locator..].starts_with(LOCATOR_64).then_some(())?;
    let record = usize::try_from(number(bytes, locator.checked_add(8)?, 8)?).ok()?;
    bytes.get(record..)?.starts_with(END_64).then_some(())?;
    let field = |offset: usize| number(bytes, record.checked_add(offset)?, 8);
    place(field(32)?, field(48)?, field(40)?)
}

/// A member, as the directory describes it.
struct Entry<'a> {
    name: &'a str,
    /// The first byte of the header before its bytes.
    header: usize,
    data: Range<usize>,
    /// The directory's next entry.
    next: usize,
}

/// The entry at `position` of the directory that begins at `directory` and ends `bytes`.
fn entry(bytes: &[u8], position: usize, directory: usize) -> Result<Entry<'_>, FormatError> {
    let torn = || FormatError::corrupt(DIRECTORY, "is broken");
    if !bytes.get(position..).is_some_and(|rest| rest.starts_with(ENTRY)) {
        return Err(torn());
    }
    let field = |offset: usize, width: usize| {
        position.checked_add(offset).and_then(|start| number(bytes, start, width)).ok_or_else(torn)
    };
    let (flags, method) = (field(8, 2)?, field(10, 2)?);
    let (mut stored, mut size, mut header) = (field(20, 4)?, field(24, 4)?, field(42, 4)?);
    let range = |start: usize, len: u64| {
        let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len));
        end.map(|end| start..end).ok_or_else(torn)
    };
    let name = range(position + ENTRY_LEN, field(28, 2)?)?; // the fields before it lie within `bytes`
    let extensions = range(name.end, field(30, 2)?)?;
    let comment = range(extensions.end, field(32, 2)?)?;
    let name = std::str::from_utf8(bytes.get(name).ok_or_else(torn)?)
        .map_err(|_| FormatError::corrupt("the zip archive", "has a name that is not UTF-8"))?;
    let member = || format!("member `{}` of the zip archive", quoted(name));
    if method != 0 || flags & 1 != 0 {
        let how = if flags & 1 != 0 { "is encrypted" } else { "is compressed" };
        return Err(FormatError::unsupported(member(), how));
    }
    let mut extensions = bytes.get(extensions).ok_or_else(torn)?;
    while let (Some(kind), Some(len)) = (number(extensions, 0, 2), number(extensions, 2, 2)) {
        let (body, rest) = extensions[4..].split_at_checked(len as usize).ok_or_else(torn)?;
        if kind == 1 {
            let mut place = 0;
            for value in [&mut size, &mut stored, &mut header] {
                if *value == ELSEWHERE {
                    *value = number(body, place, 8).ok_or_else(torn)?;
                    place += 8;
                }
            }
        }
        extensions = rest;
    }
    let outside = || FormatError::out_of_bounds(member(), "the file");
    let header = usize::try_from(header).map_err(|_| outside())?;
    if !bytes.get(header..directory).is_some_and(|rest| rest.starts_with(MEMBER)) {
        return Err(outside());
    }
    let skipped = |offset: usize| {
        let len = header.checked_add(offset).and_then(|start| number(bytes, start, 2)).ok_or_else(outside)?;
        usize::try_from(len).map_err(|_| outside())
    };
    let start = [MEMBER_LEN, skipped(26)?, skipped(28)?].into_iter().try_fold(header, usize::checked_add);
    let len = usize::try_from(size).ok();
    let end = start.zip(len).and_then(|(start, len)| start.checked_add(len));
    match (start, end) {
        (Some(start), Some(end)) if stored == size && end <= directory => {
            Ok(Entry { name, header, data: start..end, next: comment.end })
        }
        _ => Err(outside()),
    }
}

/// A little-endian number of `width` bytes.
fn number(bytes: &[u8], start: usize, width: usize) -> Option<u64> {
    let bytes = bytes.get(start..start.checked_add(width)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A member as the test writes it.
    #[derive(Clone)]
    struct Member {
        name: &'static str,
        data: &'static [u8],
        /// What the directory says.
        size: u32,
        method: u16,
        /// Where the directory says that it begins; where it does, unless given.
        header: Option<u32>,
    }

    fn member(name: &'static str, data: &'static [u8]) -> Member {
        Member { name, data, size: data.len() as u32, method: 0, header: None }
    }

    /// An archive of these members, with a directory that announces so many.
    fn archive(members: &[Member], announced: u16) -> Vec<u8> {
        let (mut bytes, mut directory) = (Vec::new(), Vec::new());
        for Member { name, data, size, method, header } in members {
            let header = header.unwrap_or(bytes.len() as u32);
            let name_len = (name.len() as u16).to_le_bytes();
            bytes.extend([MEMBER, &[0; 22], &name_len, &[0; 2], name.as_bytes(), data].concat());
            directory.extend([ENTRY, &[0; 6], &method.to_le_bytes(), &[0; 8]].concat());
            directory.extend([&size.to_le_bytes()[..], &size.to_le_bytes(), &name_len, &[0; 12]].concat());
            directory.extend([&header.to_le_bytes()[..], name.as_bytes()].concat());
        }
        let (start, len) = ((bytes.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
        let announced = announced.to_le_bytes();
        [bytes, directory, [END, &[0; 4], &announced, &announced, &len, &start, &[0; 2]].concat()].concat()
    }

    fn error(bytes: &[u8]) -> String {
        StoredZip::read(bytes).unwrap_err().to_string()
    }

    #[test]
    fn members_are_where_they_are() {
        let bytes = archive(&[member("a", b"hello"), member("b/c", b""), member("d", b"bye")], 3);
        let zip = StoredZip::read(&bytes).unwrap();
        let found: Vec<(&str, &[u8])> = zip.members().map(|(name, data)| (name, &bytes[data])).collect();
        assert_eq!(found, [("a", &b"hello"[..]), ("b/c", b""), ("d", b"bye")]);
        assert_eq!(zip.member("d").map(|data| &bytes[data]), Some(&b"bye"[..]));
        assert_eq!(zip.member("c"), None);
    }

    #[test]
    fn a_lying_archive_is_refused() {
        let hello = member("a", b"hello");
        let one = |member: Member| error(&archive(&[member], 1));
        assert!(one(Member { size: 6, ..hello.clone() }).contains("lies outside"));
        assert!(one(Member { size: u32::MAX, ..hello.clone() }).contains("lies outside"));
        assert!(one(Member { method: 8, ..hello.clone() }).contains("compressed"));
        assert!(error(&archive(std::slice::from_ref(&hello), 0xfffe)).contains("lies outside the file"));
        assert!(error(&archive(std::slice::from_ref(&hello), 0xffff)).contains("cut short"));
        assert!(error(&archive(&[hello.clone(), hello.clone()], 2)).contains("`a` twice"));
        assert!(error(b"PK\x03\x04").contains("cut short"));
        let whole = archive(&[hello], 1);
        for len in 0..whole.len() {
            assert!(StoredZip::read(&whole[..len]).is_err(), "{len}");
        }
    }

    #[test]
    fn members_that_overlap_are_refused() {
        // The same bytes twice.
        let same = [member("a", b"hello"), Member { header: Some(0), ..member("b", b"hello") }];
        assert_eq!(error(&archive(&same, 2)), "member `a` and member `b` overlap in the file");
        // A member within another's bytes, of which the last is the other's last as well.
        const INNER: &[u8] = b"PK\x03\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\0bhello";
        let within = [member("a", INNER), Member { header: Some(31), ..member("b", b"hello") }];
        assert_eq!(error(&archive(&within, 2)), "member `a` and member `b` overlap in the file");
        // One byte too many, into the header of the next.
        let long = [Member { size: 6, ..member("a", b"hello") }, member("b", b"hello")];
        assert_eq!(error(&archive(&long, 2)), "member `a` and member `b` overlap in the file");
        // Without bytes, the headers are what overlaps.
        let empty = [member("a", b""), Member { header: Some(0), ..member("b", b"") }];
        assert!(error(&archive(&empty, 2)).contains("overlap"));
        // Side by side, in whatever order.
        let apart =
            [Member { header: Some(36), ..member("a", b"hello") }, Member { header: Some(0), ..member("b", b"hello") }];
        assert!(StoredZip::read(&archive(&apart, 2)).is_ok());
    }
}
