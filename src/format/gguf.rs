//! GGUF files, versions 2 and 3: metadata by key, and where each tensor lies. Nothing is copied.

use std::collections::BTreeMap;
use std::ops::Range;

use super::error::quoted;
use super::quantized::ggml::GgmlType;
use super::FormatError;

const FILE: &str = "the file";
/// What begins the name of a tensor's data, and what every offset is a multiple of where the file does not say.
const ALIGNMENT: (&str, u64) = ("general.alignment", 32);
/// The bytes that the shortest entry takes: a key of no length, its type and one byte; a name, dimensions, type and offset.
const LEAST_PAIR: u64 = 8 + 4 + 1;
const LEAST_TENSOR: u64 = 8 + 4 + 8 + 4 + 8;

/// A GGUF file, read.
#[derive(Debug)]
pub(crate) struct Gguf<'a> {
    pub(crate) metadata: BTreeMap<&'a str, Value<'a>>,
    pub(crate) tensors: BTreeMap<&'a str, GgufTensor>,
}

/// A value of the metadata.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(&'a str),
    Array(Array<'a>),
}

/// An array of the metadata, whose entries are read when they are asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Array<'a> {
    kind: u32,
    len: usize,
    bytes: &'a [u8],
}

/// A tensor: the slowest dimension first, as in libtorch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GgufTensor {
    pub(crate) kind: GgmlType,
    pub(crate) shape: Vec<i64>,
    pub(crate) bytes: Range<usize>,
}

impl<'a> Gguf<'a> {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// What about the file is broken, or not supported.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut reader = Reader { bytes, position: 0 };
        if reader.take(4)? != b"GGUF" {
            return Err(FormatError::corrupt(FILE, "does not begin as a GGUF file does"));
        }
        match u32::from_le_bytes(reader.array()?) {
            2 | 3 => {}
            version if (1..=3).contains(&version.swap_bytes()) => {
                return Err(FormatError::unsupported(FILE, "has bytes in big-endian order"));
            }
            version => return Err(FormatError::unsupported(FILE, format!("is GGUF of version {version}"))),
        }
        let (tensors, pairs) = (reader.u64()?, reader.u64()?);
        let least = pairs.checked_mul(LEAST_PAIR).zip(tensors.checked_mul(LEAST_TENSOR));
        let least = least.and_then(|(pairs, tensors)| pairs.checked_add(tensors));
        if least.is_none_or(|least| least > reader.left() as u64) {
            return Err(FormatError::Truncated { part: "the GGUF header" });
        }
        let mut metadata = BTreeMap::new();
        for _ in 0..pairs {
            let key = reader.text()?;
            let kind = u32::from_le_bytes(reader.array()?);
            if metadata.insert(key, reader.value(kind)?).is_some() {
                return Err(FormatError::duplicate(format!("the key `{}`", quoted(key))));
            }
        }
        let alignment = match metadata.get(ALIGNMENT.0) {
            None => ALIGNMENT.1,
            Some(Value::Unsigned(alignment)) if alignment.is_power_of_two() && (8..=1 << 20).contains(alignment) => {
                *alignment
            }
            Some(_) => return Err(FormatError::corrupt("`general.alignment`", "is no power of two from 8 on")),
        };
        let announced: Vec<Announced> = (0..tensors).map(|_| reader.tensor()).collect::<Result<_, _>>()?;
        let start = (reader.position as u64).next_multiple_of(alignment);
        Ok(Gguf { metadata, tensors: places(announced, start, alignment, bytes.len() as u64)? })
    }
}

/// A tensor as the header describes it.
struct Announced<'a> {
    name: &'a str,
    kind: GgmlType,
    shape: Vec<i64>,
    offset: u64,
    len: u64,
}

/// Where the tensors lie, each within the file and outside the others.
fn places(
    announced: Vec<Announced<'_>>,
    start: u64,
    alignment: u64,
    end: u64,
) -> Result<BTreeMap<&str, GgufTensor>, FormatError> {
    let mut tensors: BTreeMap<&str, GgufTensor> = BTreeMap::new();
    for Announced { name, kind, shape, offset, len } in announced {
        let tensor = || format!("tensor `{}`", quoted(name));
        if offset % alignment != 0 {
            return Err(FormatError::corrupt("a tensor's offset", "is no multiple of the alignment"));
        }
        let first = start.checked_add(offset);
        let range = first.zip(first.and_then(|first| first.checked_add(len))).filter(|(_, last)| *last <= end);
        let Some((first, last)) = range else { return Err(FormatError::out_of_bounds(tensor(), FILE)) };
        let place = GgufTensor { kind, shape, bytes: first as usize..last as usize }; // both within the file
        if tensors.insert(name, place).is_some() {
            return Err(FormatError::duplicate(tensor()));
        }
    }
    let mut extents: Vec<(&Range<usize>, &str)> = tensors.iter().map(|(name, it)| (&it.bytes, *name)).collect();
    extents.sort_unstable_by_key(|(bytes, _)| bytes.start);
    if let Some(pair) = extents.windows(2).find(|pair| pair[0].0.end > pair[1].0.start) {
        let tensor = |name: &str| format!("tensor `{}`", quoted(name));
        return Err(FormatError::Overlap { first: tensor(pair[0].1), second: tensor(pair[1].1) });
    }
    Ok(tensors)
}

/// What is left of a file.
#[derive(Clone, Copy)]
struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let end = self.position.checked_add(len);
        let taken = end.and_then(|end| self.bytes.get(self.position..end));
        let taken = taken.ok_or(FormatError::Truncated { part: "the GGUF header" })?;
        self.position += len;
        Ok(taken)
    }

    fn array<const WIDTH: usize>(&mut self) -> Result<[u8; WIDTH], FormatError> {
        let mut bytes = [0; WIDTH];
        bytes.copy_from_slice(self.take(WIDTH)?);
        Ok(bytes)
    }

    fn u64(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn len(&mut self) -> Result<usize, FormatError> {
        usize::try_from(self.u64()?).map_err(|_| FormatError::Truncated { part: "the GGUF header" })
    }

    fn text(&mut self) -> Result<&'a str, FormatError> {
        let len = self.len()?;
        std::str::from_utf8(self.take(len)?).map_err(|_| FormatError::corrupt("a text", "is not UTF-8"))
    }

    fn value(&mut self, kind: u32) -> Result<Value<'a>, FormatError> {
        Ok(match kind {
            0 => Value::Unsigned(self.array::<1>()?[0].into()),
            1 => Value::Signed(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(u32::from_le_bytes(self.array()?).into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => Value::Bool(self.array::<1>()?[0] != 0),
            8 => Value::Text(self.text()?),
            9 => Value::Array(self.values()?),
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(FormatError::unsupported("the metadata", format!("has a value of type {kind}"))),
        })
    }

    /// An array. Its entries are checked, and read later.
    fn values(&mut self) -> Result<Array<'a>, FormatError> {
        let kind = u32::from_le_bytes(self.array()?);
        let len = self.len()?;
        let width = match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        };
        let start = self.position;
        match width {
            Some(width) => {
                let bytes = len.checked_mul(width).ok_or(FormatError::Truncated { part: "the GGUF header" })?;
                self.take(bytes)?;
            }
            None if kind == 8 => {
                for _ in 0..len {
                    self.text()?; // eight bytes at least, so a count that lies ends with the file
                }
            }
            None => return Err(FormatError::unsupported("the metadata", format!("has an array of type {kind}"))),
        }
        Ok(Array { kind, len, bytes: &self.bytes[start..self.position] })
    }

    fn tensor(&mut self) -> Result<Announced<'a>, FormatError> {
        let name = self.text()?;
        let tensor = || format!("tensor `{}`", quoted(name));
        let n_dimensions = u32::from_le_bytes(self.array()?);
        if !(1..=4).contains(&n_dimensions) {
            return Err(FormatError::unsupported(tensor(), format!("has {n_dimensions} dimensions")));
        }
        let sizes = (0..n_dimensions).map(|_| self.u64()).collect::<Result<Vec<u64>, _>>()?;
        let kind = GgmlType::from_number(u32::from_le_bytes(self.array()?));
        let kind = kind.map_err(|kind| FormatError::unsupported(tensor(), format!("is of type {kind}")))?;
        let offset = self.u64()?;
        let (numbers, width) = kind.block();
        let (numbers, width) = (numbers as u64, width as u64);
        if sizes[0] % numbers != 0 {
            return Err(FormatError::corrupt("a tensor's row", "is no whole number of blocks"));
        }
        let count = sizes.iter().try_fold(1u64, |count, n| count.checked_mul(*n)).filter(|count| *count > 0);
        let len = count.and_then(|count| (count / numbers).checked_mul(width));
        let shape = sizes.iter().rev().map(|n| i64::try_from(*n).ok()).collect::<Option<Vec<_>>>();
        match len.zip(shape) {
            Some((len, shape)) => Ok(Announced { name, kind, shape, offset, len }),
            None => Err(FormatError::out_of_bounds(tensor(), FILE)),
        }
    }
}

impl<'a> Value<'a> {
    /// A number that is no fraction and not negative.
    pub(crate) fn count(&self) -> Option<u64> {
        match self {
            Value::Unsigned(n) => Some(*n),
            Value::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&'a str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn bool(&self) -> Option<bool> {
        match self {
            Value::Bool(it) => Some(*it),
            _ => None,
        }
    }

    pub(crate) fn array(&self) -> Option<Array<'a>> {
        match self {
            Value::Array(array) => Some(*array),
            _ => None,
        }
    }
}

impl<'a> Array<'a> {
    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The entries in order.
    pub(crate) fn iter(self) -> impl Iterator<Item = Value<'a>> {
        let mut reader = Reader { bytes: self.bytes, position: 0 };
        (0..self.len).map_while(move |_| reader.value(self.kind).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
    }

    /// A file of one pair and one tensor.
    fn file(pair: &[u8], sizes: &[u64], kind: u32, offset: u64, data: usize) -> Vec<u8> {
        let mut bytes = [&b"GGUF\x03\0\0\0"[..], &1u64.to_le_bytes(), &1u64.to_le_bytes(), pair].concat();
        bytes.extend(text("t"));
        bytes.extend((sizes.len() as u32).to_le_bytes());
        bytes.extend(sizes.iter().flat_map(|n| n.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        bytes.resize(bytes.len().next_multiple_of(32) + data, 0);
        bytes
    }

    fn pair() -> Vec<u8> {
        [&text("k")[..], &9u32.to_le_bytes(), &8u32.to_le_bytes(), &2u64.to_le_bytes(), &text("a"), &text("bc")]
            .concat()
    }

    fn error(bytes: &[u8]) -> String {
        Gguf::read(bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_metadata_and_places() {
        let bytes = file(&pair(), &[32, 2], 8, 0, 68);
        let gguf = Gguf::read(&bytes).unwrap();
        let array = gguf.metadata["k"].array().unwrap();
        assert_eq!(array.len(), 2);
        assert_eq!(array.iter().collect::<Vec<_>>(), [Value::Text("a"), Value::Text("bc")]);
        let tensor = &gguf.tensors["t"];
        assert_eq!((tensor.kind, &tensor.shape[..], tensor.bytes.len()), (GgmlType::Q8_0, &[2, 32][..], 68));
        assert_eq!(tensor.bytes.end, bytes.len());
    }

    #[test]
    fn what_lies_is_refused_before_it_takes_memory() {
        let pair = pair();
        let whole = file(&pair, &[32, 2], 8, 0, 68);
        for (bytes, what) in [
            (whole[..whole.len() - 1].to_vec(), "tensor `t` lies outside the file"),
            (file(&pair, &[32, 2], 8, 32, 68), "tensor `t` lies outside the file"),
            (file(&pair, &[32, 2], 8, 1, 96), "a tensor's offset is no multiple of the alignment"),
            (file(&pair, &[1 << 40, 1 << 40], 0, 0, 0), "tensor `t` lies outside the file"),
            (file(&pair, &[32, 0], 8, 0, 0), "tensor `t` lies outside the file"),
            (file(&pair, &[33], 8, 0, 99), "a tensor's row is no whole number of blocks"),
            (file(&pair, &[32; 5], 8, 0, 0), "tensor `t` has 5 dimensions, which is not supported"),
            (file(&pair, &[256], 16, 0, 99), "tensor `t` is of type IQ2_XXS, which is not supported"),
            (file(&pair, &[256], 99, 0, 99), "tensor `t` is of type number 99, which is not supported"),
            (b"GGML".to_vec(), "the file does not begin as a GGUF file does"),
            (b"GGUF\x01\0\0\0".to_vec(), "the file is GGUF of version 1, which is not supported"),
            (b"GGUF\0\0\0\x03".to_vec(), "the file has bytes in big-endian order, which is not supported"),
            ([&b"GGUF\x03\0\0\0"[..], &[255; 16]].concat(), "the GGUF header ends too early: the file is cut short"),
        ] {
            assert_eq!(error(&bytes), what);
        }
        let long = [&text("k")[..], &9u32.to_le_bytes(), &8u32.to_le_bytes(), &u64::MAX.to_le_bytes()].concat();
        assert!(error(&file(&long, &[1], 0, 0, 4)).contains("too early"));
        let nested = [&text("k")[..], &9u32.to_le_bytes(), &9u32.to_le_bytes(), &1u64.to_le_bytes()].concat();
        assert!(error(&file(&nested, &[1], 0, 0, 4)).contains("an array of type 9"));
        let alignment = [&text("general.alignment")[..], &4u32.to_le_bytes(), &0u32.to_le_bytes()].concat();
        assert!(error(&file(&alignment, &[1], 0, 0, 4)).contains("power of two"));
    }

    #[test]
    fn tensors_lie_outside_each_other_and_have_names_of_their_own() {
        let announced = |name, offset, len| Announced { name, kind: GgmlType::F32, shape: vec![1], offset, len };
        let error = |tensors| places(tensors, 0, 32, 128).unwrap_err().to_string();
        assert_eq!(error(vec![announced("a", 0, 4), announced("a", 32, 4)]), "the file has tensor `a` twice");
        let overlap = error(vec![announced("b", 32, 4), announced("a", 0, 36)]);
        assert_eq!(overlap, "tensor `a` and tensor `b` overlap in the file");
        assert!(places(vec![announced("a", 0, 32), announced("b", 32, 96)], 0, 32, 128).is_ok());
    }
}
