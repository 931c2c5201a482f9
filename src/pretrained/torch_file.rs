//! Files of `torch.save`: where in them each tensor lies.
//!
//! Nothing is run and nothing is copied: the pickle is read by [`Pickle`], and a tensor is a view at an offset of the mapped
//! file, as in a safetensors file. Both containers are known: the zip archive of torch 1.6 and later, and what came before.

use std::collections::BTreeMap;

use tch::Kind;

use super::pickle::{Pickle, Storage, Strided, Value};
use super::stored_zip::StoredZip;
use crate::unchecked::mapped::Place;

/// The number that a file of the older container begins with, `0x1950a86a20f9469cfc6c`, little endian.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The older container's only version.
const VERSION: i64 = 1001;

/// The tensors of a state dict, by name.
///
/// # Errors
///
/// One sentence: what the file wants to run, or what about it is broken or not supported.
pub(crate) fn entries(bytes: &[u8]) -> Result<Vec<(String, Place)>, String> {
    if StoredZip::is_one(bytes) {
        zip(bytes)
    } else if bytes.first() == Some(&0x80) {
        legacy(bytes)
    } else {
        Err("it is neither a zip archive nor a pickle, so torch.save did not write it".into())
    }
}

/// `archive/data.pkl`, and each storage as `archive/data/KEY`.
fn zip(bytes: &[u8]) -> Result<Vec<(String, Place)>, String> {
    let zip = StoredZip::read(bytes)?;
    let Some(folder) = zip.names().find_map(|name| name.strip_suffix("/data.pkl").filter(|name| !name.contains('/')))
    else {
        return Err("the zip archive has no data.pkl, so torch.save did not write it".into());
    };
    let member = |name: &str| zip.member(&format!("{folder}/{name}"));
    let bytes_of = |(start, len): (usize, usize)| &bytes[start..start + len];
    if member("byteorder").is_some_and(|place| bytes_of(place) != b"little") {
        return Err("its bytes are in big-endian order, which is not supported".into());
    }
    let pickle = member("data.pkl").map(bytes_of).unwrap_or_default();
    let pickle = Pickle::read(pickle)?;
    named(&pickle, |storage| {
        let missing = || format!("storage `{}` is not in the archive", storage.key.escape_default());
        let (start, len) = member(&format!("data/{}", storage.key)).ok_or_else(missing)?;
        Ok((start, len))
    })
}

/// Four pickles (magic number, version, system, the state dict), one of the storages' keys, and those storages: each
/// its length in entries, then its entries.
fn legacy(bytes: &[u8]) -> Result<Vec<(String, Place)>, String> {
    let mut at = 0;
    let mut next = || -> Result<Pickle, String> {
        let pickle = Pickle::read(&bytes[at..])?;
        at += pickle.len;
        Ok(pickle)
    };
    let (magic, version, system) = (next()?, next()?, next()?);
    if !matches!(magic.root, Value::Long(magic) if magic == MAGIC) {
        return Err("it is a pickle, but not one of torch.save".into());
    }
    if !matches!(version.root, Value::Int(VERSION)) {
        return Err("it is of a version of torch.save that is not supported".into());
    }
    let big =
        |(key, value): &(Value, Value)| matches!((key, value), (Value::Text("little_endian"), Value::Bool(false)));
    if system.dict(system.root).is_some_and(|system| system.iter().any(big)) {
        return Err("its bytes are in big-endian order, which is not supported".into());
    }
    let pickle = next()?;
    let keys = next()?;
    let mut kinds: BTreeMap<&str, Kind> = BTreeMap::new();
    for storage in pickle.storages() {
        if *kinds.entry(storage.key).or_insert(storage.kind) != storage.kind {
            return Err(format!("storage `{}` is of two kinds", storage.key.escape_default()));
        }
    }
    let mut places: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for key in keys.list(keys.root).ok_or("it has no list of storages")? {
        let Value::Text(key) = *key else { return Err("a storage's key is no text".into()) };
        let torn = || format!("storage `{}` lies outside the file, which is cut short", key.escape_default());
        let kind = kinds.get(key).ok_or_else(|| format!("nothing uses storage `{}`", key.escape_default()))?;
        let start = at.checked_add(8).ok_or_else(torn)?;
        let len = bytes.get(at..start).ok_or_else(torn)?;
        let len = len.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        let len = usize::try_from(len).ok().and_then(|len| len.checked_mul(kind.elt_size_in_bytes()));
        let end = len.and_then(|len| start.checked_add(len)).filter(|end| *end <= bytes.len()).ok_or_else(torn)?;
        places.insert(key, (start, end - start));
        at = end;
    }
    named(&pickle, |storage| {
        let missing = || format!("storage `{}` is not in the file", storage.key.escape_default());
        places.get(storage.key).copied().ok_or_else(missing)
    })
}

/// The tensors that the pickle's dictionary names; `storage` says where in the file a storage lies.
fn named(
    pickle: &Pickle,
    storage: impl Fn(&Storage) -> Result<(usize, usize), String>,
) -> Result<Vec<(String, Place)>, String> {
    let Some(dict) = pickle.dict(pickle.root) else {
        return Err("it holds no state dict: its top is no dictionary".into());
    };
    let mut tensors = Vec::with_capacity(dict.len());
    for (name, value) in dict {
        let Value::Text(name) = name else { return Err("its state dict has a name that is no text".into()) };
        let Some(tensor) = pickle.tensor(*value) else {
            return Err(format!("it holds no state dict: its entry `{}` is no tensor", name.escape_default()));
        };
        let (start, len) = storage(&tensor.storage)?;
        let place = place(tensor, start, len).map_err(|why| format!("tensor `{}`: {why}", name.escape_default()))?;
        tensors.push((name.to_string(), place));
    }
    Ok(tensors)
}

/// Where a tensor lies, within its storage, which lies within the file.
fn place(tensor: &Strided, start: usize, len: usize) -> Result<Place, String> {
    let Strided { storage, offset, shape, strides } = tensor;
    let width = storage.kind.elt_size_in_bytes();
    if storage.len.checked_mul(width).is_none_or(|bytes| bytes > len) {
        return Err(format!("its storage should have {} entries of {width} bytes, but has {len} bytes", storage.len));
    }
    let count = shape.iter().try_fold(1i64, |count, n| count.checked_mul(*n));
    // The last entry's place; a tensor without entries has none, and lies nowhere.
    let last = shape.iter().zip(strides).try_fold(*offset as u64, |last, (n, stride)| {
        ((*n - 1).max(0) as u64).checked_mul(*stride as u64).and_then(|step| last.checked_add(step))
    });
    match (count, last) {
        (Some(0), _) => Ok(Place { start, kind: storage.kind, shape: shape.clone(), strides: strides.clone() }),
        // More entries than the storage has are an expanded tensor, which a small file could make of any size.
        (Some(count), Some(last)) if last < storage.len as u64 && count as u64 <= storage.len as u64 => {
            let start = start + offset * width;
            Ok(Place { start, kind: storage.kind, shape: shape.clone(), strides: strides.clone() })
        }
        _ => Err(format!(
            "shape {shape:?} with strides {strides:?} from {offset} on is more than its storage of {} entries",
            storage.len
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use rstest::rstest;
    use tch::Tensor;

    use super::*;
    use crate::unchecked::mapped::Mapped;

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
        let mapped = Mapped::open(&file(saved)).unwrap();
        let ours: BTreeMap<String, Place> = entries(mapped.bytes()).unwrap().into_iter().collect();
        let theirs = Tensor::read_safetensors(file(expected)).unwrap();
        assert_eq!(ours.len(), theirs.len());
        for (name, theirs) in theirs {
            let ours = mapped.tensor(&ours[&name]).unwrap();
            assert_eq!((ours.kind(), ours.size()), (theirs.kind(), theirs.size()), "{name}");
            assert!(ours.equal(&theirs), "{name}: {ours:?}");
        }
    }

    #[rstest]
    #[case("malicious.bin", "posix.system")]
    #[case("malicious_legacy.bin", "posix.system")]
    #[case("malicious_pickle.bin", "__builtin__.eval")]
    fn what_wants_to_call_something_is_refused(#[case] saved: &str, #[case] function: &str) {
        let error = entries(&std::fs::read(file(saved)).unwrap()).unwrap_err();
        assert_eq!(error, format!("the pickle wants to call `{function}`: refused"));
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
                let _ = named(&pickle, |_| Ok((0, 64)));
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
        let storage = Storage { key: "0", kind: Kind::Float, len: 6 };
        let try_ = |offset, shape: &[i64], strides: &[i64], bytes| {
            let tensor = Strided { storage, offset, shape: shape.to_vec(), strides: strides.to_vec() };
            place(&tensor, 100, bytes)
        };
        assert_eq!(try_(1, &[2, 2], &[1, 3], 24).unwrap().start, 104);
        assert_eq!(try_(0, &[], &[], 24).unwrap().shape, [] as [i64; 0]);
        assert_eq!(try_(9, &[0, 3], &[3, 1], 24).unwrap().start, 100);
        for (offset, shape, strides, bytes) in [
            (2, &[2, 2][..], &[1, 3][..], 24),       // its last entry is the seventh
            (0, &[7], &[0], 24),                     // more entries than there are
            (0, &[i64::MAX, i64::MAX], &[1, 1], 24), // a product past any number
            (0, &[2], &[i64::MAX], 24),              // a step past any number
            (usize::MAX, &[1], &[1], 24),            // an offset past any number
            (0, &[2], &[1], 23),                     // a storage shorter than it says
            (6, &[], &[], 24),                       // just past the end
        ] {
            let error = try_(offset, shape, strides, bytes);
            assert!(error.is_err(), "{shape:?} {strides:?} from {offset}: {error:?}");
        }
    }
}
