//! Pickles as `torch.save` writes them, read without running anything.
//!
//! A pickle is a program for a small stack machine, and two of its instructions call whatever Python function it names. This
//! machine knows the handful of functions that rebuild tensors, and refuses every other by name. It follows no
//! pointer and never recurses: values lie in one list and refer to each other by their place in it, so that neither deep nor
//! cyclic nesting costs anything, and memory is bounded by the number of instructions.

mod machine;

use tch::Kind;

use self::machine::Machine;

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
    At(usize),
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
    Storage(Kind),
}

impl Function {
    fn of(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Function::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Function::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Function::RebuildParameter,
            ("torch", storage) => Function::Storage(match storage.strip_suffix("Storage")? {
                "Double" => Kind::Double,
                "Float" => Kind::Float,
                "Half" => Kind::Half,
                "BFloat16" => Kind::BFloat16,
                "Long" => Kind::Int64,
                "Int" => Kind::Int,
                "Short" => Kind::Int16,
                "Char" => Kind::Int8,
                "Byte" => Kind::Uint8,
                "Bool" => Kind::Bool,
                _ => return None,
            }),
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
    Tensor(Strided<'a>),
}

/// Where a tensor's entries lie, outside the pickle.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Storage<'a> {
    pub(crate) key: &'a str,
    pub(crate) kind: Kind,
    /// In entries.
    pub(crate) len: usize,
}

/// A tensor: a view of a storage, in entries of its kind.
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
    /// One sentence: what the pickle wants to call, or what about it is broken.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let mut machine = Machine::new(bytes);
        for _ in 0..MAX_STEPS {
            if let Some(root) = machine.step()? {
                let (nodes, len) = machine.end();
                return Ok(Pickle { nodes, root, len });
            }
        }
        Err(format!("the pickle has more than {MAX_STEPS} instructions, which no checkpoint needs"))
    }

    /// The entries of a dictionary.
    pub(crate) fn dict(&self, value: Value) -> Option<&[(Value<'a>, Value<'a>)]> {
        match value {
            Value::At(node) => match self.nodes.get(node)? {
                Node::Dict(entries) => Some(entries),
                _ => None,
            },
            _ => None,
        }
    }

    /// The entries of a list or tuple.
    pub(crate) fn list(&self, value: Value) -> Option<&[Value<'a>]> {
        match value {
            Value::At(node) => match self.nodes.get(node)? {
                Node::Tuple(entries) | Node::List(entries) => Some(entries),
                _ => None,
            },
            _ => None,
        }
    }

    /// A tensor.
    pub(crate) fn tensor(&self, value: Value) -> Option<&Strided<'a>> {
        match value {
            Value::At(node) => match self.nodes.get(node)? {
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
        Pickle::read(bytes).unwrap_err()
    }

    #[test]
    fn whatever_is_no_tensor_is_refused_by_name() {
        // Every way of naming a function: GLOBAL, INST, STACK_GLOBAL.
        assert_eq!(error(b"\x80\x02cos\nsystem\n"), "the pickle wants to call `os.system`: refused");
        assert_eq!(error(b"(S'x'\n"), "the pickle has instruction 0x53 at byte 1: not supported");
        assert_eq!(error(b"(ios\nsystem\n."), "the pickle wants to call `os.system`: refused");
        assert_eq!(error(b"\x80\x04\x8c\x02os\x8c\x06system\x93"), "the pickle wants to call `os.system`: refused");
        assert_eq!(error(b"ctorch\nload\n"), "the pickle wants to call `torch.load`: refused");
        assert_eq!(error(b"ctorch\nQInt8Storage\n"), "the pickle wants to call `torch.QInt8Storage`: refused");
        assert!(error(b"\x80\x02ctorch\nFloatStorage\n)R.").contains("no function"));
        assert!(error(b"\x82\x01.").contains("0x82")); // EXT1: a function by number
    }

    #[test]
    fn what_is_broken_says_so() {
        for (bytes, what) in [
            (&b""[..], "too early"),
            (b"\x80\x09.", "protocol 9"),
            (b".", "empty stack"),
            (b"(0.", "empty stack"),
            (b"t.", "never opened"),
            (b"h\x05.", "never stored"),
            (b"X\xff\xff\xff\xffabc", "too early"),
            (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc", "too early"),
            (b"NNa.", "no list"),
            (b"}N(NNN u.", "0x20"),
            (b"}(NNNu.", "without a value"),
            (b"(N\x85\x86.", "empty stack"),
            (b"NQ.", "no storage"),
            (b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNt R", "0x20"),
            (b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNtR.", "no place"),
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
        // One list of pairs made into a dictionary over and over.
        let mut copies = b"]q\x00(".to_vec();
        copies.extend(b"NN\x86".repeat(5000));
        copies.extend(b"e");
        copies.extend(b"ccollections\nOrderedDict\nh\x00\x85R".repeat(2000));
        copies.extend(b".");
        assert!(error(&copies).contains("copies"));
        // Endless.
        let endless = vec![b'N'; MAX_STEPS + 10];
        assert!(error(&endless).contains("instructions"));
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
