//! [`Machine`]: the stack machine that a pickle is a program for.

use std::collections::HashMap;

use super::{Function, Node, Storage, Strided, Value, MAX_STEPS};

/// As many dimensions as libtorch takes.
const MAX_DIMS: usize = 64;

/// A pickle's instructions, and what they have made so far.
pub(super) struct Machine<'a> {
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
    /// Before the first instruction.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Machine { bytes, at: 0, stack: vec![], marks: vec![], memo: HashMap::new(), nodes: vec![], copied: 0 }
    }

    /// All values, and how many bytes the instructions took.
    pub(super) fn end(self) -> (Vec<Node<'a>>, usize) {
        (self.nodes, self.at)
    }

    /// One instruction; the pickle's value, after the last.
    pub(super) fn step(&mut self) -> Result<Option<Value<'a>>, String> {
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
