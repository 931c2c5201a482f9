//! Bytes, numbers and lines of a pickle.

use super::super::super::FormatError;
use super::{corrupt, Machine, TORN};

impl<'a> Machine<'a> {
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let end = self.position.checked_add(len).ok_or(TORN)?;
        let bytes = self.bytes.get(self.position..end).ok_or(TORN)?;
        self.position = end;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, FormatError> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    pub(super) fn u64(&mut self) -> Result<usize, FormatError> {
        let (low, high) = (self.u32()?, self.u32()?);
        usize::try_from(u64::from(high) << 32 | u64::from(low)).map_err(|_| TORN)
    }

    pub(super) fn line(&mut self) -> Result<&'a str, FormatError> {
        // Names and numbers are short; a longer search would let a torn file be searched over and over.
        let rest = &self.bytes[self.position..];
        let len = rest.iter().take(1 << 10).position(|byte| *byte == b'\n').ok_or(TORN)?;
        self.position += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| corrupt("has a name that is not UTF-8"))
    }
}
