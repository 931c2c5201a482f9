//! Pickles as `torch.save` writes them, read without running anything.
//!
//! A pickle is a program for a small stack machine, and two of its instructions call whatever Python function it names. This
//! machine knows the handful of functions that rebuild tensors, and refuses every other by name. It follows no
//! pointer and never recurses: values lie in one list and refer to each other by their place in it, so that neither deep nor
//! cyclic nesting costs anything. It accounts for the memory that it takes, and stops where that is more than a multiple
//! of the bytes that it has read.

mod machine;

use self::machine::Machine;
use super::{Dtype, FormatError};

/// More instructions than this are no checkpoint: a tensor takes about thirty.
const MAX_STEPS: usize = 1 << 22;

/// A value; text is borrowed from the pickle.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// A whole number of more than eight bytes, little endian: torch's magic number is one.
    Long(&'a [u8]),
    Text(&'a str),
    /// A number or bytes that no tensor needs.
    Other,
    Function(Function),
    /// The node of this index.
    Node(usize),
}

/// What a pickle may name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Function {
    OrderedDict,
    /// `(storage, offset, size, stride, …)` to a tensor.
    RebuildTensor,
    /// `(tensor, requires_grad, hooks)` to the tensor.
    RebuildParameter,
    /// A class of storages: no call, but part of a storage's name.
    Storage(Dtype),
}

impl Function {
    fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Function::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Function::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Function::RebuildParameter,
            ("torch", class) => Function::Storage(Dtype::from_storage_class(class)?),
            _ => return None,
        })
    }
}

/// What is larger than a number.
#[derive(Debug)]
pub(crate) enum Node<'a> {
    Tuple(Vec<Value<'a>>),
    List(Vec<Value<'a>>),
    Dict(Vec<(Value<'a>, Value<'a>)>),
    Storage(Storage<'a>),
    /// Boxed, as most nodes are smaller.
    Tensor(Box<Strided<'a>>),
}

/// Where a tensor's entries lie, outside the pickle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storage<'a> {
    pub(crate) key: &'a str,
    pub(crate) dtype: Dtype,
    /// In entries.
    pub(crate) len: usize,
}

/// A tensor: a view of a storage, in entries of its dtype.
#[derive(Clone, Debug)]
pub(crate) struct Strided<'a> {
    pub(crate) storage: Storage<'a>,
    pub(crate) offset: usize,
    pub(crate) shape: Vec<i64>,
    pub(crate) strides: Vec<i64>,
}

/// A pickle, read.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    nodes: Vec<Node<'a>>,
    pub(crate) root: Value<'a>,
    /// How many bytes it took.
    pub(crate) len: usize,
}

impl<'a> Pickle<'a> {
    /// Reads the pickle that `bytes` begin with.
    ///
    /// # Errors
    ///
    /// What the pickle wants to call, or what about it is broken.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, FormatError> {
        let mut machine = Machine::new(bytes);
        for _ in 0..MAX_STEPS {
            if let Some(root) = machine.step()? {
                let (nodes, len) = machine.finish();
                return Ok(Pickle { nodes, root, len });
            }
        }
        Err(FormatError::Excessive { part: "the pickle", what: format!("has over {MAX_STEPS} instructions") })
    }

    /// The entries of a dictionary.
    pub(crate) fn dict(&self, value: Value) -> Option<&[(Value<'a>, Value<'a>)]> {
        match value {
            Value::Node(node) => match self.nodes.get(node)? {
                Node::Dict(entries) => Some(entries),
                _ => None,
            },
            _ => None,
        }
    }

    /// The entries of a list or tuple.
    pub(crate) fn list(&self, value: Value) -> Option<&[Value<'a>]> {
        match value {
            Value::Node(node) => match self.nodes.get(node)? {
                Node::Tuple(entries) | Node::List(entries) => Some(entries),
                _ => None,
            },
            _ => None,
        }
    }

    /// A tensor.
    pub(crate) fn tensor(&self, value: Value) -> Option<&Strided<'a>> {
        match value {
            Value::Node(node) => match self.nodes.get(node)? {
                Node::Tensor(tensor) => Some(tensor),
                _ => None,
            },
            _ => None,
        }
    }

    /// All storages that the pickle names, some of them often.
    pub(crate) fn storages(&self) -> impl Iterator<Item = &Storage<'a>> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Storage(storage) => Some(storage),
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(bytes: &[u8]) -> String {
        Pickle::read(bytes).unwrap_err().to_string()
    }

    #[test]
    fn whatever_is_no_tensor_is_refused_by_name() {
        // Every way of naming a function: GLOBAL, INST, STACK_GLOBAL.
        assert_eq!(error(b"\x80\x02cos\nsystem\n"), "the pickle wants to call `os.system`: refused");
        assert_eq!(error(b"(S'x'\n"), "the pickle has instruction 0x53 at byte 1, which is not supported");
        assert_eq!(error(b"(ios\nsystem\n."), "the pickle wants to call `os.system`: refused");
        assert_eq!(error(b"\x80\x04\x8c\x02os\x8c\x06system\x93"), "the pickle wants to call `os.system`: refused");
        assert_eq!(error(b"ctorch\nload\n"), "the pickle wants to call `torch.load`: refused");
        assert_eq!(error(b"ctorch\nQInt8Storage\n"), "the pickle wants to call `torch.QInt8Storage`: refused");
        assert!(error(b"\x80\x02ctorch\nFloatStorage\n)R.").contains("not a function: refused"));
        assert!(error(b"\x82\x01.").contains("0x82")); // EXT1: a function by number
    }

    #[test]
    fn what_is_broken_says_so() {
        for (bytes, what) in [
            (&b""[..], "too early"),
            (b"\x80\x09.", "protocol 9"),
            (b".", "empty stack"),
            (b"(0.", "empty stack"),
            (b"t.", "never set"),
            (b"h\x05.", "never stored"),
            (b"X\xff\xff\xff\xffabc", "too early"),
            (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc", "too early"),
            (b"NNa.", "not a list"),
            (b"}N(NNN u.", "0x20"),
            (b"}(NNNu.", "without a value"),
            (b"(N\x85\x86.", "empty stack"),
            (b"NQ.", "not a storage"),
            (b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNt R", "0x20"),
            (b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.", "without a place"),
        ] {
            assert!(error(bytes).contains(what), "{bytes:?}: {}", error(bytes));
        }
    }

    #[test]
    fn bombs_cost_nothing() {
        // Nested a million deep: dropping it must not recurse.
        let deep: Vec<u8> = b")".iter().chain(&[0x85; 1_000_000]).chain(b".").copied().collect();
        assert!(Pickle::read(&deep).is_ok());
        // Each list holds the last twice: 2^1000 entries, were they written out.
        let mut laughs = b"]".to_vec();
        for _ in 0..1000 {
            laughs.extend(b"q\x00](h\x00h\x00e");
        }
        laughs.extend(b".");
        assert!(Pickle::read(&laughs).is_ok());
        // A list within itself.
        assert!(Pickle::read(b"]q\x00h\x00a.").is_ok());
        // Endless.
        let endless = vec![b'N'; MAX_STEPS + 10];
        assert!(error(&endless).contains("instructions"));
    }

    #[test]
    fn memory_is_in_proportion_to_the_pickle() {
        let tensor = b"h\x00h\x01R"; // the function and its arguments, recalled
        let arguments = [
            &b"ctorch._utils\n_rebuild_tensor_v2\nq\x00(("[..],
            b"\x8c\x07storagectorch\nFloatStorage\n\x8c\x010N",
            b"K\x01tQK\x00(",
        ];
        let dims = b"K\x01".repeat(64);
        let with_dims = [&arguments.concat()[..], &dims, b"t(", &dims, b"ttq\x01"].concat();
        let pairs = [&b"]q\x00("[..], &b"NN\x86".repeat(5000), b"eccollections\nOrderedDict\nq\x02"].concat();
        for (what, begin, again) in [
            ("a tensor of 64 dimensions", &with_dims, &tensor[..]),
            ("pairs made into a dictionary", &pairs, b"h\x02h\x00\x85R"),
        ] {
            let bytes = [&begin[..], &again.repeat(50_000), b"."].concat();
            let mut machine = Machine::new(&bytes);
            let error = loop {
                match machine.step() {
                    Ok(None) => {}
                    Ok(Some(_)) => panic!("{what}: it was read, with {} bytes", machine.taken()),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, FormatError::Excessive { .. }), "{what}: {error}");
            let one_more = 48 * 5000; // the largest that one instruction takes here
            assert!(machine.taken() <= bytes.len() * machine::BYTES_PER_BYTE + machine::ALLOWANCE + one_more, "{what}");
        }
    }

    #[test]
    fn what_torch_saves_takes_a_fraction_of_the_limit() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/torch_files");
        for name in ["zip.bin", "zip_protocol_4.bin", "module.bin", "gpt2_zip/pytorch_model.bin"] {
            let file = std::fs::read(folder.join(name)).unwrap();
            let archive = super::super::stored_zip::StoredZip::read(&file).unwrap();
            let (_, pickle) = archive.members().find(|(name, _)| name.ends_with("/data.pkl")).unwrap();
            let mut machine = Machine::new(&file[pickle.clone()]);
            while machine.step().unwrap().is_none() {}
            let ratio = machine.taken() as f64 / pickle.len() as f64;
            println!("{name}: {} bytes of memory for {} of the pickle, {ratio:.1} each", machine.taken(), pickle.len());
            assert!(ratio < machine::BYTES_PER_BYTE as f64 / 2.0, "{name}: {ratio}");
        }
    }

    #[test]
    fn numbers_of_any_length() {
        for (bytes, want) in
            [(&b"\x8a\x00."[..], 0), (b"\x8a\x01\xff.", -1), (b"\x8a\x02\x00\x01.", 256), (b"I-7\n.", -7)]
        {
            assert!(matches!(Pickle::read(bytes).unwrap().root, Value::Int(n) if n == want), "{bytes:?}");
        }
        assert!(matches!(Pickle::read(b"\x8a\x09123456789.").unwrap().root, Value::Long(_)));
    }
}
