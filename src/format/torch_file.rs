//! Files of `torch.save`: where in them each tensor lies.
//!
//! Nothing is run and nothing is copied: the pickle is read by [`Pickle`], and a tensor is a view at an offset of the
//! file, as in a safetensors file. Both containers are known: the zip archive of torch 1.6 and later, and what came before.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use super::error::quoted;
use super::pickle::{Pickle, Storage, Strided, Value};
use super::stored_zip::StoredZip;
use super::{Dtype, FormatError, Place};

/// The number that a file of the older container begins with, `0x1950a86a20f9469cfc6c`, little endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The older container's only version.
const VERSION: i64 = 1001;

const FILE: &str = "the file";

/// More entries than this has no dictionary of tensors.
const MAX_LEAVES: usize = 1 << 16;

/// What a dictionary has under a name.
#[derive(Debug)]
pub(crate) enum Leaf {
    Tensor(Place),
    Int(i64),
    Text(String),
}

/// Where in the file a storage lies.
type Find<'f> = dyn Fn(&Storage) -> Result<Range<usize>, FormatError> + 'f;

/// The tensors of a state dict, by name.
///
/// # Errors
///
/// What the file wants to run, or what about it is broken or not supported.
pub(crate) fn entries(bytes: &[u8]) -> Result<Vec<(String, Place)>, FormatError> {
    read(bytes, |pickle, find| named(pickle, find))
}

/// The tensors, whole numbers and texts of a dictionary, and of the dictionaries in it: `J.3` is entry 3 of dictionary `J`. What lies
/// deeper, and what is of another kind, is left out.
///
/// # Errors
///
/// Those of [`entries`]; [`FormatError::Duplicate`] for a name that comes twice.
pub(crate) fn leaves(bytes: &[u8]) -> Result<BTreeMap<String, Leaf>, FormatError> {
    read(bytes, |pickle, find| {
        let (mut found, mut visited) = (BTreeMap::new(), 0usize);
        let Some(outer) = pickle.dict(pickle.root) else {
            return Err(FormatError::corrupt("the pickle's top", "is not a dictionary"));
        };
        for (name, value) in outer {
            let Some(name) = key(name) else { continue };
            match pickle.dict(*value) {
                None => add_leaf(&mut found, name, leaf(pickle, *value, find)?)?,
                // One dictionary may be recalled thousands of times.
                Some(inner) if visited.saturating_add(inner.len()) > MAX_LEAVES => {
                    let what = format!("has over {MAX_LEAVES} entries");
                    return Err(FormatError::Excessive { part: "the pickle", what });
                }
                Some(inner) => {
                    visited += inner.len();
                    for (inner_name, value) in inner {
                        let Some(inner_name) = key(inner_name) else { continue };
                        add_leaf(&mut found, format!("{name}.{inner_name}"), leaf(pickle, *value, find)?)?;
                    }
                }
            }
        }
        Ok(found)
    })
}

fn add_leaf(found: &mut BTreeMap<String, Leaf>, name: String, leaf: Option<Leaf>) -> Result<(), FormatError> {
    let Some(leaf) = leaf else { return Ok(()) };
    match found.insert(name.clone(), leaf) {
        None => Ok(()),
        Some(_) => Err(FormatError::duplicate(format!("entry `{}`", quoted(&name)))),
    }
}

/// The name of a dictionary's entry: of a text, as much as an error would show.
fn key(name: &Value) -> Option<String> {
    match name {
        Value::Text(name) if name.len() <= 200 => Some(name.to_string()),
        Value::Int(number) => Some(number.to_string()),
        _ => None,
    }
}

fn leaf(pickle: &Pickle, value: Value, find: &Find) -> Result<Option<Leaf>, FormatError> {
    Ok(match value {
        Value::Int(number) => Some(Leaf::Int(number)),
        Value::Text(text) if text.len() <= 1000 => Some(Leaf::Text(text.to_string())),
        _ => match pickle.tensor(value) {
            None => None,
            Some(strided) => {
                let storage = find(&strided.storage)?;
                let outside = || FormatError::out_of_bounds("a tensor", "its storage");
                Some(Leaf::Tensor(place(strided, storage).ok_or_else(outside)?))
            }
        },
    })
}

/// What `interpret` makes of the pickle of a file.
fn read<T>(bytes: &[u8], interpret: impl FnOnce(&Pickle, &Find) -> Result<T, FormatError>) -> Result<T, FormatError> {
    if StoredZip::is_one(bytes) {
        zip(bytes, interpret)
    } else if bytes.first() == Some(&0x80) {
        legacy(bytes, interpret)
    } else {
        Err(FormatError::corrupt(FILE, "is neither a zip archive nor a pickle, so torch.save did not write it"))
    }
}

fn big_endian() -> FormatError {
    FormatError::unsupported(FILE, "has bytes in big-endian order")
}

/// `archive/data.pkl`, and each storage as `archive/data/KEY`.
fn zip<T>(bytes: &[u8], interpret: impl FnOnce(&Pickle, &Find) -> Result<T, FormatError>) -> Result<T, FormatError> {
    let zip = StoredZip::read(bytes)?;
    let is_pickle = |name: &&str| name.split_once('/').is_some_and(|(_, rest)| rest == "data.pkl");
    let Some(pickle) = zip.members().map(|(name, _)| name).find(is_pickle) else {
        return Err(FormatError::missing("data.pkl, so torch.save did not write it"));
    };
    let folder = &pickle[..pickle.len() - "data.pkl".len()]; // with its slash
    let member = |name: &str| zip.member(&format!("{folder}{name}"));
    if member("byteorder").is_some_and(|place| &bytes[place] != b"little") {
        return Err(big_endian());
    }
    let pickle = Pickle::read(zip.member(pickle).map_or(&[], |place| &bytes[place]))?;
    let data = format!("{folder}data/");
    let storages = zip.members().filter_map(|(name, place)| Some((name.strip_prefix(&data)?, place)));
    let storages: BTreeMap<&str, Range<usize>> = storages.collect();
    interpret(&pickle, &|storage| {
        let missing = || FormatError::missing(format!("storage `{}`", quoted(storage.key)));
        storages.get(storage.key).cloned().ok_or_else(missing)
    })
}

/// Four pickles (magic number, version, system, the state dict), one of the storages' keys, and those storages: each
/// its length in entries, then its entries.
fn legacy<T>(bytes: &[u8], interpret: impl FnOnce(&Pickle, &Find) -> Result<T, FormatError>) -> Result<T, FormatError> {
    let mut position = 0usize;
    let mut next = || -> Result<Pickle, FormatError> {
        let pickle = Pickle::read(bytes.get(position..).unwrap_or_default())?;
        position = position.saturating_add(pickle.len);
        Ok(pickle)
    };
    let (magic, version, system) = (next()?, next()?, next()?);
    if !matches!(magic.root, Value::Long(magic) if magic == MAGIC) {
        return Err(FormatError::corrupt(FILE, "is a pickle, but not one of torch.save"));
    }
    if !matches!(version.root, Value::Int(VERSION)) {
        return Err(FormatError::unsupported(FILE, "is of another version of torch.save"));
    }
    let big =
        |(key, value): &(Value, Value)| matches!((key, value), (Value::Text("little_endian"), Value::Bool(false)));
    if system.dict(system.root).is_some_and(|system| system.iter().any(big)) {
        return Err(big_endian());
    }
    let pickle = next()?;
    let keys = next()?;
    let mut dtypes: BTreeMap<&str, Dtype> = BTreeMap::new();
    for storage in pickle.storages() {
        if *dtypes.entry(storage.key).or_insert(storage.dtype) != storage.dtype {
            return Err(FormatError::corrupt(FILE, "has a storage of two dtypes"));
        }
    }
    let mut places: BTreeMap<&str, Range<usize>> = BTreeMap::new();
    for key in keys.list(keys.root).ok_or_else(|| FormatError::missing("list of storages"))? {
        let Value::Text(key) = *key else {
            return Err(FormatError::corrupt(FILE, "has a storage with a key that is not text"));
        };
        let storage = || format!("storage `{}`", quoted(key));
        let dtype = dtypes.get(key).ok_or_else(|| FormatError::corrupt(FILE, "has a storage that nothing uses"))?;
        let outside = || FormatError::out_of_bounds(storage(), "the file, which is cut short");
        let start = position.checked_add(8).ok_or_else(outside)?;
        let len = bytes.get(position..start).ok_or_else(outside)?;
        let len = len.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        let len = usize::try_from(len).ok().and_then(|len| len.checked_mul(dtype.width()));
        let end = len.and_then(|len| start.checked_add(len)).filter(|end| *end <= bytes.len()).ok_or_else(outside)?;
        if places.insert(key, start..end).is_some() {
            return Err(FormatError::duplicate(storage()));
        }
        position = end;
    }
    interpret(&pickle, &|storage| {
        let missing = || FormatError::missing(format!("storage `{}`", quoted(storage.key)));
        places.get(storage.key).cloned().ok_or_else(missing)
    })
}

/// The tensors that the pickle's dictionary names; `find` says where in the file a storage lies.
pub(crate) fn named(
    pickle: &Pickle,
    find: impl Fn(&Storage) -> Result<Range<usize>, FormatError>,
) -> Result<Vec<(String, Place)>, FormatError> {
    let not_a_state_dict = |what| FormatError::corrupt("the pickle's top", what);
    let Some(dict) = pickle.dict(pickle.root) else {
        return Err(not_a_state_dict("is not a dictionary, so the file holds no state dict"));
    };
    // Different names are different bytes of the pickle, so together they are no longer than it. A name that comes again
    // may be one long text, recalled thousands of times.
    let mut names = BTreeSet::new();
    let mut tensors = Vec::with_capacity(dict.len());
    for (name, value) in dict {
        let Value::Text(name) = *name else {
            return Err(not_a_state_dict("has a name that is not text, so the file holds no state dict"));
        };
        let tensor = || format!("tensor `{}`", quoted(name));
        if !names.insert(name) {
            return Err(FormatError::duplicate(tensor()));
        }
        let Some(strided) = pickle.tensor(*value) else {
            let what = "is not a tensor, and a state dict holds only tensors";
            return Err(FormatError::unsupported(format!("entry `{}`", quoted(name)), what));
        };
        let storage = find(&strided.storage)?;
        let outside = || FormatError::out_of_bounds(tensor(), format!("storage `{}`", quoted(strided.storage.key)));
        let place = place(strided, storage).ok_or_else(outside)?;
        tensors.push((name.to_string(), place));
    }
    Ok(tensors)
}

/// Where a tensor lies within its storage, whose bytes these are; `None` where it does not, or where it has more entries than
/// the storage: that is an expanded tensor, which a small file could make of any size.
fn place(tensor: &Strided, bytes: Range<usize>) -> Option<Place> {
    let Strided { storage, offset, shape, strides } = tensor;
    let width = storage.dtype.width();
    let announced = storage.len.checked_mul(width)?;
    let end = bytes.start.checked_add(announced).filter(|end| *end <= bytes.end)?;
    let place = |start| Place { start, dtype: storage.dtype, shape: shape.clone(), strides: strides.clone() };
    let count = shape.iter().try_fold(1usize, |count, n| count.checked_mul(usize::try_from(*n).ok()?))?;
    if count == 0 {
        return Some(place(bytes.start)); // without entries, it lies nowhere
    }
    let start = offset.checked_mul(width).and_then(|offset| bytes.start.checked_add(offset))?;
    let place = place(start);
    let within = count <= storage.len && place.bytes()?.end <= end;
    within.then_some(place)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use rstest::rstest;

    use super::super::safetensors;
    use super::*;

    fn file(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch_files").join(name)
    }

    #[rstest]
    #[case("zip.bin", "expected.safetensors")]
    #[case("zip_protocol_4.bin", "expected.safetensors")]
    #[case("legacy.bin", "expected.safetensors")]
    #[case("legacy_dict.bin", "expected.safetensors")]
    #[case("module.bin", "module.safetensors")]
    fn tensors_are_what_torch_saved(#[case] saved: &str, #[case] expected: &str) {
        let (saved, expected) = (std::fs::read(file(saved)).unwrap(), std::fs::read(file(expected)).unwrap());
        let ours: BTreeMap<String, Place> = entries(&saved).unwrap().into_iter().collect();
        let theirs = safetensors::entries(&expected).unwrap();
        assert_eq!(ours.len(), theirs.len());
        for (name, theirs) in theirs {
            let ours = &ours[&name];
            assert_eq!((ours.dtype, &ours.shape), (theirs.dtype, &theirs.shape), "{name}");
            assert_eq!(elements(&saved, ours), elements(&expected, &theirs), "{name}");
        }
    }

    /// A tensor's entries in order, each as its bytes.
    fn elements<'a>(file: &'a [u8], place: &Place) -> Vec<&'a [u8]> {
        let width = place.dtype.width();
        let mut starts = vec![place.start];
        for (n, stride) in place.shape.iter().zip(&place.strides) {
            let steps = |start: usize| (0..*n as usize).map(move |i| start + i * *stride as usize * width);
            starts = starts.into_iter().flat_map(steps).collect();
        }
        starts.into_iter().map(|start| &file[start..start + width]).collect()
    }

    #[rstest]
    #[case("malicious.bin", "posix.system")]
    #[case("malicious_legacy.bin", "posix.system")]
    #[case("malicious_pickle.bin", "__builtin__.eval")]
    fn what_wants_to_call_something_is_refused(#[case] saved: &str, #[case] function: &str) {
        let error = entries(&std::fs::read(file(saved)).unwrap()).unwrap_err();
        assert!(matches!(&error, FormatError::Refused { function: refused } if refused == function));
        assert_eq!(error.to_string(), format!("the pickle wants to call `{function}`: refused"));
    }

    #[test]
    fn no_cut_file_is_read() {
        for saved in ["zip.bin", "legacy.bin"] {
            let bytes = std::fs::read(file(saved)).unwrap();
            for len in 0..bytes.len() {
                assert!(entries(&bytes[..len]).is_err(), "{saved} cut to {len}");
            }
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { cases: 3000, failure_persistence: None, ..Default::default() })]

        /// Pickles of random instructions, more of which make sense to each other than random bytes would.
        #[test]
        fn random_pickles_are_read_or_refused(
            instructions in proptest::collection::vec(proptest::sample::select(INSTRUCTIONS), 0..60),
        ) {
            let bytes: Vec<u8> = instructions.iter().flat_map(|one| one.iter().copied()).chain(*b".").collect();
            if let Ok(pickle) = Pickle::read(&bytes) {
                let _ = named(&pickle, |_| Ok(0..64));
            }
        }
    }

    const INSTRUCTIONS: &[&[u8]] = &[
        b"(",
        b")",
        b"]",
        b"}",
        b"t",
        b"l",
        b"d",
        b"a",
        b"e",
        b"s",
        b"u",
        b"\x85",
        b"\x86",
        b"\x87",
        b"0",
        b"1",
        b"2",
        b"N",
        b"K\x00",
        b"K\x02",
        b"J\xff\xff\xff\xff",
        b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f",
        b"\x88",
        b"Q",
        b"R",
        b"b",
        b"\x81",
        b"\x94",
        b"q\x00",
        b"h\x00",
        b"h\x01",
        b"\x8c\x07storage",
        b"\x8c\x010",
        b"\x8c\x03cpu",
        b"ctorch\nFloatStorage\n",
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ccollections\nOrderedDict\n",
        b"\x85K\x01\x85",
        b"((\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x08tQ",
        b"K\x00(K\x02K\x02t(K\x02K\x01t",
        b"\x89N",
        b"tR",
    ];

    #[test]
    fn a_tensor_lies_within_its_storage() {
        let storage = Storage { key: "0", dtype: Dtype::F32, len: 6 };
        let place = |offset, shape: &[i64], strides: &[i64], bytes: usize| {
            let tensor = Strided { storage, offset, shape: shape.to_vec(), strides: strides.to_vec() };
            place(&tensor, 100..100 + bytes)
        };
        assert_eq!(place(1, &[2, 2], &[1, 3], 24).unwrap().start, 104);
        assert_eq!(place(0, &[], &[], 24).unwrap().shape, [] as [i64; 0]);
        assert_eq!(place(9, &[0, 3], &[3, 1], 24).unwrap().start, 100);
        assert_eq!(place(0, &[6], &[1], 24).unwrap().bytes(), Some(100..124));
        for (offset, shape, strides, bytes) in [
            (2, &[2, 2][..], &[1, 3][..], 24),       // its last entry is the seventh
            (0, &[7], &[0], 24),                     // more entries than there are
            (0, &[i64::MAX, i64::MAX], &[1, 1], 24), // a product past any number
            (0, &[2], &[i64::MAX], 24),              // a step past any number
            (usize::MAX, &[1], &[1], 24),            // an offset past any number
            (0, &[2], &[1], 23),                     // a storage shorter than it says
            (6, &[], &[], 24),                       // just past the end
            (6, &[], &[], 48),                       // within the bytes, but past what the storage announces
        ] {
            let found = place(offset, shape, strides, bytes);
            assert!(found.is_none(), "{shape:?} {strides:?} from {offset}: {found:?}");
        }
    }

    /// One name of half a megabyte, recalled for thousands of tensors, would take gigabytes.
    #[test]
    fn a_name_that_is_recalled_is_refused() {
        const STORAGE: &[u8] = b"(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x01tQ";
        let tensor = [b"ctorch._utils\n_rebuild_tensor_v2\n(", STORAGE, b"K\x00))tRq\x00"].concat();
        let name = [&b"X"[..], &500_000u32.to_le_bytes(), &[b'a'; 500_000], b"q\x01"].concat();
        let read = |names: &[u8]| {
            let bytes = [&tensor[..], &name, b"}(", names, b"u."].concat();
            named(&Pickle::read(&bytes).unwrap(), |_| Ok(0..4)).map(|tensors| tensors.len())
        };
        assert_eq!(read(b"h\x01h\x00").unwrap(), 1);
        assert_eq!(read(b"h\x01h\x00\x8c\x01bh\x00").unwrap(), 2);
        let error = read(&b"h\x01h\x00".repeat(8000)).unwrap_err();
        assert!(matches!(&error, FormatError::Duplicate { .. }), "{error}");
        assert!(error.to_string().len() < 200, "{error}");
    }
}
