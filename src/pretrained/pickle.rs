//! Pickles as `torch.save` writes them, read without running anything.
//!
//! A pickle is a program for a small stack machine, and two of its instructions call whatever Python function it names. This
//! machine knows the handful of functions that rebuild tensors, and refuses every other by name. It follows no
//! pointer and never recurses: values lie in one list and refer to each other by their place in it, so that neither deep nor
//! cyclic nesting costs anything, and memory is bounded by the number of instructions.

use std::collections::HashMap;

use tch::Kind;

/// More instructions than this are no checkpoint: a tensor takes about thirty.
const MAX_STEPS: usize = 1 << 22;

/// As many dimensions as libtorch takes.
const MAX_DIMS: usize = 64;

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
        let mut machine =
            Machine { bytes, at: 0, stack: vec![], marks: vec![], memo: HashMap::new(), nodes: vec![], copied: 0 };
        for _ in 0..MAX_STEPS {
            if let Some(root) = machine.step()? {
                return Ok(Pickle { nodes: machine.nodes, root, len: machine.at });
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

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    stack: Vec<Value<'a>>,
    /// The stack's heights at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    nodes: Vec<Node<'a>>,
    /// Entries that were copied from one collection into another, which costs no instruction each.
    copied: usize,
}

const TORN: &str = "the pickle ends too early";
const EMPTY: &str = "the pickle takes a value from an empty stack";

impl<'a> Machine<'a> {
    /// One instruction; the pickle's value, after the last.
    fn step(&mut self) -> Result<Option<Value<'a>>, String> {
        let start = self.at;
        let code = self.take(1)?[0];
        match code {
            0x80 => match self.take(1)?[0] {
                0..=5 => {}
                version => return Err(format!("the pickle is of protocol {version}; 0 to 5 are known")),
            },
            0x95 => {
                self.take(8)?; // a frame's length: only for who reads in pieces
            }
            b'.' => return self.pop().map(Some),

            // Stack and memo.
            b'(' => self.marks.push(self.stack.len()),
            b'0' if self.marks.last() == Some(&self.stack.len()) => {
                self.marks.pop();
            }
            b'0' => {
                self.pop()?;
            }
            b'1' => {
                self.items_to_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'q' => self.put(|machine| Ok(machine.take(1)?[0].into()))?,
            b'r' => self.put(|machine| machine.u32())?,
            0x94 => self.put(|machine| u32::try_from(machine.memo.len()).map_err(|_| TORN.into()))?,
            b'h' => self.get(|machine| Ok(machine.take(1)?[0].into()))?,
            b'j' => self.get(|machine| machine.u32())?,

            // Plain values.
            b'N' => self.stack.push(Value::None),
            0x88 => self.stack.push(Value::Bool(true)),
            0x89 => self.stack.push(Value::Bool(false)),
            b'J' => {
                let value = self.u32()? as i32;
                self.stack.push(Value::Int(value.into()));
            }
            b'K' => {
                let value = self.take(1)?[0];
                self.stack.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = self.take(2)?;
                self.stack.push(Value::Int(u16::from_le_bytes([value[0], value[1]]).into()));
            }
            0x8a => {
                let len = self.take(1)?[0].into();
                let value = self.take(len)?;
                self.stack.push(long(value));
            }
            0x8b => {
                let len = self.u32()? as usize;
                let value = self.take(len)?;
                self.stack.push(long(value));
            }
            b'I' => {
                let line = self.line()?;
                self.stack.push(match line {
                    "00" => Value::Bool(false),
                    "01" => Value::Bool(true),
                    digits => Value::Int(digits.parse().map_err(|_| "the pickle has a number that is none")?),
                });
            }
            b'L' => {
                let line = self.line()?;
                let digits = line.strip_suffix('L').unwrap_or(line);
                self.stack.push(digits.parse().map_or(Value::Other, Value::Int));
            }
            b'F' => {
                self.line()?;
                self.stack.push(Value::Other);
            }
            b'G' => {
                self.take(8)?;
                self.stack.push(Value::Other);
            }
            b'X' | b'T' => {
                let len = self.u32()? as usize;
                self.text(len)?;
            }
            0x8c | b'U' => {
                let len = self.take(1)?[0].into();
                self.text(len)?;
            }
            0x8d => {
                let len = self.u64()?;
                self.text(len)?;
            }
            b'C' => {
                let len = self.take(1)?[0].into();
                self.other(len)?;
            }
            b'B' => {
                let len = self.u32()? as usize;
                self.other(len)?;
            }
            0x8e => {
                let len = self.u64()?;
                self.other(len)?;
            }

            // Collections.
            b')' => self.push(Node::Tuple(vec![])),
            b't' => {
                let items = self.items_to_mark()?;
                self.push(Node::Tuple(items));
            }
            0x85..=0x87 => {
                let len = usize::from(code - 0x84);
                let from = self.stack.len().checked_sub(len).filter(|from| self.marks.last() <= Some(from));
                let items = self.stack.split_off(from.ok_or(EMPTY)?);
                self.push(Node::Tuple(items));
            }
            b']' | 0x8f => self.push(Node::List(vec![])),
            b'l' => {
                let items = self.items_to_mark()?;
                self.push(Node::List(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.append([item])?;
            }
            b'e' | 0x90 => {
                let items = self.items_to_mark()?;
                self.append(items)?;
            }
            b'}' => self.push(Node::Dict(vec![])),
            b'd' => {
                let items = self.items_to_mark()?;
                self.push(Node::Dict(vec![]));
                self.set_items(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(vec![key, value])?;
            }
            b'u' => {
                let items = self.items_to_mark()?;
                self.set_items(items)?;
            }

            // What could run something.
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.name(module, name)?;
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => self.name(module, name)?,
                _ => return Err("the pickle names a function by something that is no text".into()),
            },
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(function, arguments)?;
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                return Err(refused(module, name));
            }
            // The state of a dictionary is `_metadata`, which no tensor needs; nothing else here has any.
            b'b' => {
                self.pop()?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(Node::Storage(storage));
            }
            other => return Err(format!("the pickle has instruction {other:#04x} at byte {start}: not supported")),
        }
        Ok(None)
    }

    // --- bytes --------------------------------------------------------------------------------

    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let bytes = self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end)).ok_or(TORN)?;
        self.at += len;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self) -> Result<usize, String> {
        let (low, high) = (self.u32()?, self.u32()?);
        usize::try_from(u64::from(high) << 32 | u64::from(low)).map_err(|_| TORN.into())
    }

    fn line(&mut self) -> Result<&'a str, String> {
        // Names and numbers are short; a longer search would let a torn file be searched over and over.
        let rest = &self.bytes[self.at..];
        let len = rest.iter().take(1 << 10).position(|byte| *byte == b'\n').ok_or(TORN)?;
        self.at += len + 1;
        std::str::from_utf8(&rest[..len]).map_err(|_| "the pickle has a name that is not UTF-8".into())
    }

    // --- the stack ----------------------------------------------------------------------------

    fn top(&self) -> Result<Value<'a>, String> {
        self.stack.last().copied().ok_or_else(|| EMPTY.into())
    }

    fn pop(&mut self) -> Result<Value<'a>, String> {
        match self.marks.last() {
            Some(mark) if *mark >= self.stack.len() => Err(EMPTY.into()),
            _ => self.stack.pop().ok_or_else(|| EMPTY.into()),
        }
    }

    fn items_to_mark(&mut self) -> Result<Vec<Value<'a>>, String> {
        let mark = self.marks.pop().ok_or("the pickle closes what it never opened")?;
        Ok(self.stack.split_off(mark))
    }

    fn push(&mut self, node: Node<'a>) {
        self.stack.push(Value::At(self.nodes.len()));
        self.nodes.push(node);
    }

    fn put(&mut self, place: impl FnOnce(&mut Self) -> Result<u32, String>) -> Result<(), String> {
        let (place, top) = (place(self)?, self.top()?);
        self.memo.insert(place, top);
        Ok(())
    }

    fn get(&mut self, place: impl FnOnce(&mut Self) -> Result<u32, String>) -> Result<(), String> {
        let place = place(self)?;
        let value = self.memo.get(&place).copied().ok_or("the pickle recalls what it never stored")?;
        self.stack.push(value);
        Ok(())
    }

    fn text(&mut self, len: usize) -> Result<(), String> {
        let text = self.take(len)?;
        // Python 2 strings need not be UTF-8; those that are not name no tensor.
        self.stack.push(std::str::from_utf8(text).map_or(Value::Other, Value::Text));
        Ok(())
    }

    fn other(&mut self, len: usize) -> Result<(), String> {
        self.take(len)?;
        self.stack.push(Value::Other);
        Ok(())
    }

    fn append(&mut self, items: impl IntoIterator<Item = Value<'a>>) -> Result<(), String> {
        match self.top()? {
            Value::At(node) => match self.nodes.get_mut(node) {
                Some(Node::List(list)) => list.extend(items),
                _ => return Err("the pickle appends to what is no list".into()),
            },
            _ => return Err("the pickle appends to what is no list".into()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<Value<'a>>) -> Result<(), String> {
        let Value::At(node) = self.top()? else {
            return Err("the pickle sets an entry of what is no dictionary".into());
        };
        let Some(Node::Dict(entries)) = self.nodes.get_mut(node) else {
            return Err("the pickle sets an entry of what is no dictionary".into());
        };
        if !items.len().is_multiple_of(2) {
            return Err("the pickle has a key without a value".into());
        }
        entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }

    // --- functions ----------------------------------------------------------------------------

    fn name(&mut self, module: &str, name: &str) -> Result<(), String> {
        let function = Function::of(module, name).ok_or_else(|| refused(module, name))?;
        self.stack.push(Value::Function(function));
        Ok(())
    }

    fn call(&mut self, function: Value<'a>, arguments: Value<'a>) -> Result<(), String> {
        let Some(arguments) = self.tuple(arguments) else { return Err("the pickle calls without arguments".into()) };
        match function {
            Value::Function(Function::OrderedDict) => {
                // Nothing, or one list of pairs.
                let mut entries = Vec::new();
                let mut copied = self.copied;
                if let Some(pairs) = arguments.first().and_then(|list| self.tuple(*list)) {
                    copied += pairs.len();
                    if copied > MAX_STEPS {
                        return Err("the pickle copies more than any checkpoint needs".into());
                    }
                    for pair in pairs {
                        match self.tuple(*pair) {
                            Some([key, value]) => entries.push((*key, *value)),
                            _ => return Err("the pickle makes a dictionary of what are no pairs".into()),
                        }
                    }
                }
                self.copied = copied;
                self.push(Node::Dict(entries));
            }
            Value::Function(Function::RebuildTensor) => {
                let tensor = self.strided(arguments).ok_or("the pickle has a tensor of no place, shape or strides")?;
                self.push(Node::Tensor(tensor));
            }
            Value::Function(Function::RebuildParameter) => {
                let tensor = *arguments.first().ok_or("the pickle has a parameter of nothing")?;
                self.stack.push(tensor);
            }
            _ => return Err("the pickle calls what is no function: refused".into()),
        }
        Ok(())
    }

    fn tuple(&self, value: Value) -> Option<&[Value<'a>]> {
        match value {
            Value::At(node) => match self.nodes.get(node)? {
                Node::Tuple(entries) | Node::List(entries) => Some(entries),
                _ => None,
            },
            _ => None,
        }
    }

    /// `(storage, offset, size, stride, requires_grad, hooks)`; a seventh says that the entries are conjugated.
    fn strided(&self, arguments: &[Value<'a>]) -> Option<Strided<'a>> {
        let [storage, Value::Int(offset), size, stride, rest @ ..] = arguments else { return None };
        if !matches!(rest.get(2), None | Some(Value::None)) {
            return None;
        }
        let Value::At(storage) = storage else { return None };
        let Node::Storage(storage) = self.nodes.get(*storage)? else { return None };
        let numbers = |value: &Value| -> Option<Vec<i64>> {
            let entries = self.tuple(*value).filter(|entries| entries.len() <= MAX_DIMS)?;
            let number = |value: &Value| match value {
                Value::Int(n) if *n >= 0 => Some(*n),
                _ => None,
            };
            entries.iter().map(number).collect()
        };
        let (shape, strides) = (numbers(size)?, numbers(stride)?);
        let offset = usize::try_from(*offset).ok()?;
        (shape.len() == strides.len()).then_some(Strided { storage: *storage, offset, shape, strides })
    }

    /// `("storage", class, key, location, numel)`; older files add a view of another storage.
    fn storage(&self, id: Value) -> Result<Storage<'a>, String> {
        use Value::{Function as Called, Int, None as Nothing, Text};
        match self.tuple(id) {
            Some(
                [Text("storage"), Called(Function::Storage(kind)), Text(key), _, Int(len)]
                | [Text("storage"), Called(Function::Storage(kind)), Text(key), _, Int(len), Nothing],
            ) => {
                let len = usize::try_from(*len).map_err(|_| format!("storage `{key}` has {len} entries"))?;
                Ok(Storage { key, kind: *kind, len })
            }
            _ => Err("the pickle refers to something outside it that is no storage".into()),
        }
    }
}

/// Refuses to run something.
fn refused(module: &str, name: &str) -> String {
    format!("the pickle wants to call `{}.{}`: refused", module.escape_default(), name.escape_default())
}

/// A whole number, little endian.
fn long(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 {
        return Value::Long(bytes);
    }
    let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
    let mut whole = if negative { [0xff; 8] } else { [0; 8] };
    whole[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(whole))
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
