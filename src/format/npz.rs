//! npz files, as `numpy.savez` writes them: a zip archive of stored `.npy` members.
//!
//! What a member's header claims is checked against the member's length; a header is read as the one dictionary that numpy writes, and
//! nothing in it is run.

use super::error::quoted;
use super::stored_zip::StoredZip;
use super::{Dtype, FormatError, Place};

const MAGIC: &[u8] = b"\x93NUMPY";
const HEADER: &str = "the header of an npy file";
/// numpy's own bound for headers that it reads.
const LONGEST_HEADER: usize = 10_000;
/// numpy's bound for dimensions.
const MOST_DIMENSIONS: usize = 64;

/// Each array of an npz file: its name, and where it lies.
///
/// # Errors
///
/// [`FormatError`] for a broken or compressed archive, a member that is no npy file, and numbers that libtorch does not have.
pub(crate) fn entries(bytes: &[u8]) -> Result<Vec<(String, Place)>, FormatError> {
    let zip = StoredZip::read(bytes)?;
    zip.members()
        .map(|(name, data)| {
            let member = bytes.get(data.clone()).ok_or(FormatError::Truncated { part: "the npz file" })?;
            let mut place = array(member, name)?;
            place.start = place.start.saturating_add(data.start);
            Ok((name.strip_suffix(".npy").unwrap_or(name).to_string(), place))
        })
        .collect()
}

/// Where the numbers of an npy file lie in it.
fn array(bytes: &[u8], name: &str) -> Result<Place, FormatError> {
    let truncated = FormatError::Truncated { part: "an npy file" };
    if !bytes.starts_with(MAGIC) {
        return Err(FormatError::unsupported(format!("member `{}`", quoted(name)), "is no npy file"));
    }
    let (len, start) = match bytes.get(6) {
        Some(1) => (number(bytes, 8, 2), 10),
        Some(2 | 3) => (number(bytes, 8, 4), 12),
        Some(_) => return Err(FormatError::unsupported(HEADER, "is of another version than 1 to 3")),
        None => return Err(truncated),
    };
    let Some(len) = len else { return Err(truncated) };
    if len > LONGEST_HEADER {
        return Err(FormatError::Excessive { part: HEADER, what: format!("is {len} bytes long") });
    }
    let data = start + len;
    let header = bytes.get(start..data).ok_or(truncated)?;
    let header = std::str::from_utf8(header).map_err(|_| FormatError::corrupt(HEADER, "is no text"))?;
    let Header { descr, fortran_order, shape } = Header::read(header)?;
    let array = || format!("array `{}`", quoted(name));
    let dtype =
        dtype(&descr).ok_or_else(|| FormatError::unsupported(array(), format!("has dtype `{}`", quoted(&descr))))?;
    let mut place = Place::contiguous(data, dtype, shape.clone());
    if fortran_order {
        let reversed = Place::contiguous(data, dtype, shape.into_iter().rev().collect());
        place.strides = reversed.strides.into_iter().rev().collect();
    }
    match place.bytes() {
        Some(range) if range.end <= bytes.len() => Ok(place),
        _ => Err(FormatError::out_of_bounds(array(), "its member of the npz file")),
    }
}

/// What an npy file says of its numbers.
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<i64>,
}

impl Header {
    /// `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`
    fn read(text: &str) -> Result<Self, FormatError> {
        let corrupt = || FormatError::corrupt(HEADER, "is not the dictionary that numpy writes");
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        let inner = text.trim().strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or_else(corrupt)?;
        let mut rest = inner.trim();
        while !rest.is_empty() {
            let (key, after) = text_in_quotes(rest).ok_or_else(corrupt)?;
            let value = after.trim_start().strip_prefix(':').ok_or_else(corrupt)?.trim_start();
            let twice = || FormatError::duplicate(format!("field `{}`", quoted(key)));
            rest = match key {
                "descr" => {
                    let (found, after) = text_in_quotes(value).ok_or_else(corrupt)?;
                    descr.replace(found.to_string()).map_or(Ok(()), |_| Err(twice()))?;
                    after
                }
                "fortran_order" => {
                    let (found, after) = match (value.strip_prefix("True"), value.strip_prefix("False")) {
                        (Some(after), _) => (true, after),
                        (_, Some(after)) => (false, after),
                        _ => return Err(corrupt()),
                    };
                    fortran_order.replace(found).map_or(Ok(()), |_| Err(twice()))?;
                    after
                }
                "shape" => {
                    let (inside, after) =
                        value.strip_prefix('(').and_then(|rest| rest.split_once(')')).ok_or_else(corrupt)?;
                    let sizes = inside.split(',').map(str::trim).filter(|size| !size.is_empty());
                    let sizes: Option<Vec<i64>> = sizes.map(|size| size.parse().ok().filter(|n| *n >= 0)).collect();
                    let sizes = sizes.filter(|sizes| sizes.len() <= MOST_DIMENSIONS).ok_or_else(corrupt)?;
                    shape.replace(sizes).map_or(Ok(()), |_| Err(twice()))?;
                    after
                }
                _ => return Err(corrupt()),
            };
            rest = rest.trim_start();
            rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => Ok(Header { descr, fortran_order, shape }),
            _ => Err(corrupt()),
        }
    }
}

/// A text in quotes, and what comes after it.
fn text_in_quotes(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_prefix('\'')?;
    rest.split_once('\'')
}

/// The dtype of one of numpy's names, little-endian.
fn dtype(descr: &str) -> Option<Dtype> {
    Some(match descr {
        "<f8" => Dtype::F64,
        "<f4" => Dtype::F32,
        "<f2" => Dtype::F16,
        "<i8" => Dtype::I64,
        "<i4" => Dtype::I32,
        "<i2" => Dtype::I16,
        "|i1" => Dtype::I8,
        "|u1" => Dtype::U8,
        "|b1" => Dtype::Bool,
        _ => return None,
    })
}

/// A little-endian number of `width` bytes.
fn number(bytes: &[u8], start: usize, width: usize) -> Option<usize> {
    let bytes = bytes.get(start..start.checked_add(width)?)?;
    Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Vec<u8> {
        [MAGIC, &[1, 0], &(header.len() as u16).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn header(descr: &str, order: &str, shape: &str) -> String {
        format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}   \n")
    }

    #[test]
    fn arrays_are_where_they_are() {
        for (order, shape, sizes, strides) in [
            ("False", "(2, 3)", vec![2, 3], vec![3, 1]),
            ("True", "(2, 3)", vec![2, 3], vec![1, 2]),
            ("False", "(6,)", vec![6], vec![1]),
        ] {
            let header = header("<f4", order, shape);
            let place = array(&npy(&header, &[0; 24]), "a").unwrap();
            let wanted = Place { start: 10 + header.len(), dtype: Dtype::F32, shape: sizes, strides };
            assert_eq!(place, wanted, "{order} {shape}");
        }
        assert_eq!(array(&npy(&header("<f8", "False", "()"), &[0; 8]), "a").unwrap().shape, Vec::<i64>::new());
    }

    #[test]
    fn a_lying_header_is_refused() {
        let error = |bytes: &[u8]| array(bytes, "a").map(|_| ()).unwrap_err().to_string();
        assert!(error(&npy(&header("<f4", "False", "(7,)"), &[0; 24])).contains("outside"));
        assert!(error(&npy(&header("<f4", "False", "(9223372036854775807, 2)"), &[0; 24])).contains("outside"));
        assert!(error(&npy(&header(">f4", "False", "(6,)"), &[0; 24])).contains("dtype `>f4`"));
        assert!(error(&npy(&header("|O", "False", "(6,)"), &[0; 24])).contains("dtype `|O`"));
        assert!(error(&npy(&header("<f4", "Maybe", "(6,)"), &[0; 24])).contains("not the dictionary"));
        assert!(error(&npy(&header("<f4", "False", "(-1,)"), &[0; 24])).contains("not the dictionary"));
        assert!(error(&npy("{'shape': (1,), 'shape': (1,)}", &[0; 24])).contains("twice"));
        assert!(error(b"PK\x03\x04").contains("no npy file"));
        let whole = npy(&header("<f4", "False", "(6,)"), &[0; 24]);
        for len in 0..whole.len() {
            assert!(array(&whole[..len], "a").is_err(), "{len}");
        }
    }
}
