//! [`Machine`]: the stack machine that a pickle is a program for.

mod calls;
mod reading;

use std::collections::HashMap;

use super::super::FormatError;
use super::{Node, Value};

/// The machine may take this many bytes of memory for each byte that it has read. `torch.save` makes it take about thirty.
pub(super) const BYTES_PER_BYTE: usize = 128;

/// Memory beyond that, in bytes.
pub(super) const ALLOWANCE: usize = 1 << 16;

/// A pickle's instructions, and what they have made so far.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    /// The next instruction.
    position: usize,
    stack: Vec<Value<'a>>,
    /// The stack's heights at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    nodes: Vec<Node<'a>>,
    /// Bytes of memory that all of this has taken; what has been given back counts as well.
    taken: usize,
}

const TORN: FormatError = FormatError::Truncated { part: PICKLE };
const PICKLE: &str = "the pickle";

/// The pickle does what none may do.
fn corrupt(what: &'static str) -> FormatError {
    FormatError::corrupt(PICKLE, what)
}

fn empty() -> FormatError {
    corrupt("takes a value from an empty stack")
}

impl<'a> Machine<'a> {
    /// Before the first instruction.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Machine { bytes, position: 0, stack: vec![], marks: vec![], memo: HashMap::new(), nodes: vec![], taken: 0 }
    }

    /// All values, and how many bytes the instructions took.
    pub(super) fn finish(self) -> (Vec<Node<'a>>, usize) {
        (self.nodes, self.position)
    }

    /// Bytes of memory that were taken so far.
    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.taken
    }

    /// One instruction; the pickle's value, after the last.
    pub(super) fn step(&mut self) -> Result<Option<Value<'a>>, FormatError> {
        let start = self.position;
        let code = self.take(1)?[0];
        match code {
            0x80 => match self.take(1)?[0] {
                0..=5 => {}
                version => return Err(FormatError::unsupported(PICKLE, format!("is of protocol {version}"))),
            },
            0x95 => {
                self.take(8)?; // a frame's length: only for readers that read in pieces
            }
            b'.' => return self.pop().map(Some),

            // Stack and memo.
            b'(' => {
                self.reserve(size_of::<usize>())?;
                self.marks.push(self.stack.len());
            }
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
                self.push(top)?;
            }
            b'q' => self.put(|machine| Ok(machine.take(1)?[0].into()))?,
            b'r' => self.put(|machine| machine.u32())?,
            0x94 => self.put(|machine| u32::try_from(machine.memo.len()).map_err(|_| TORN))?,
            b'h' => self.get(|machine| Ok(machine.take(1)?[0].into()))?,
            b'j' => self.get(|machine| machine.u32())?,

            // Plain values.
            b'N' => self.push(Value::None)?,
            0x88 => self.push(Value::Bool(true))?,
            0x89 => self.push(Value::Bool(false))?,
            b'J' => {
                let value = self.u32()? as i32;
                self.push(Value::Int(value.into()))?;
            }
            b'K' => {
                let value = self.take(1)?[0];
                self.push(Value::Int(value.into()))?;
            }
            b'M' => {
                let value = self.take(2)?;
                self.push(Value::Int(u16::from_le_bytes([value[0], value[1]]).into()))?;
            }
            0x8a => {
                let len = self.take(1)?[0].into();
                let value = self.take(len)?;
                self.push(long(value))?;
            }
            0x8b => {
                let len = self.u32()? as usize;
                let value = self.take(len)?;
                self.push(long(value))?;
            }
            b'I' => {
                let line = self.line()?;
                let number = |digits: &str| digits.parse().map_err(|_| corrupt("has a line that should be a number"));
                self.push(match line {
                    "00" => Value::Bool(false),
                    "01" => Value::Bool(true),
                    digits => Value::Int(number(digits)?),
                })?;
            }
            b'L' => {
                let line = self.line()?;
                let digits = line.strip_suffix('L').unwrap_or(line);
                self.push(digits.parse().map_or(Value::Other, Value::Int))?;
            }
            b'F' => {
                self.line()?;
                self.push(Value::Other)?;
            }
            b'G' => {
                self.take(8)?;
                self.push(Value::Other)?;
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
            b')' => self.push_node(Node::Tuple(vec![]))?,
            b't' => {
                let items = self.items_to_mark()?;
                self.push_node(Node::Tuple(items))?;
            }
            0x85..=0x87 => {
                let len = usize::from(code - 0x84);
                let from = self.stack.len().checked_sub(len).filter(|from| self.marks.last() <= Some(from));
                let items = self.split_off(from.ok_or_else(empty)?)?;
                self.push_node(Node::Tuple(items))?;
            }
            b']' | 0x8f => self.push_node(Node::List(vec![]))?,
            b'l' => {
                let items = self.items_to_mark()?;
                self.push_node(Node::List(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' | 0x90 => {
                let items = self.items_to_mark()?;
                self.append(items)?;
            }
            b'}' => self.push_node(Node::Dict(vec![]))?,
            b'd' => {
                let items = self.items_to_mark()?;
                self.push_node(Node::Dict(vec![]))?;
                self.set_items(&items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.items_to_mark()?;
                self.set_items(&items)?;
            }

            // What could run something.
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.name(module, name)?;
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => self.name(module, name)?,
                _ => return Err(corrupt("names a function by something that is not text")),
            },
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(function, arguments)?;
            }
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                return Err(calls::refused(module, name));
            }
            // The state of a dictionary is `_metadata`, which no tensor needs; nothing else here has any.
            b'b' => {
                self.pop()?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push_node(Node::Storage(storage))?;
            }
            other => {
                let what = format!("has instruction {other:#04x} at byte {start}");
                return Err(FormatError::unsupported(PICKLE, what));
            }
        }
        Ok(None)
    }

    // --- memory -------------------------------------------------------------------------------

    /// Accounts for memory before it is taken: never more than a multiple of the bytes read so far.
    fn reserve(&mut self, bytes: usize) -> Result<(), FormatError> {
        self.taken = self.taken.saturating_add(bytes);
        let limit = self.position.saturating_mul(BYTES_PER_BYTE).saturating_add(ALLOWANCE);
        if self.taken > limit {
            let what = format!("takes {} bytes of memory after {} bytes of instructions", self.taken, self.position);
            return Err(FormatError::Excessive { part: PICKLE, what });
        }
        Ok(())
    }

    fn reserve_values(&mut self, n: usize) -> Result<(), FormatError> {
        self.reserve(n.saturating_mul(size_of::<Value>()))
    }

    // --- the stack ----------------------------------------------------------------------------

    fn top(&self) -> Result<Value<'a>, FormatError> {
        self.stack.last().copied().ok_or_else(empty)
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), FormatError> {
        self.reserve_values(1)?;
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value<'a>, FormatError> {
        match self.marks.last() {
            Some(mark) if *mark >= self.stack.len() => Err(empty()),
            _ => self.stack.pop().ok_or_else(empty),
        }
    }

    fn split_off(&mut self, height: usize) -> Result<Vec<Value<'a>>, FormatError> {
        self.reserve_values(self.stack.len() - height)?;
        Ok(self.stack.split_off(height))
    }

    fn items_to_mark(&mut self) -> Result<Vec<Value<'a>>, FormatError> {
        let mark = self.marks.pop().ok_or_else(|| corrupt("closes a mark that it never set"))?;
        self.split_off(mark)
    }

    fn push_node(&mut self, node: Node<'a>) -> Result<(), FormatError> {
        self.reserve(size_of::<Node>())?;
        self.push(Value::Node(self.nodes.len()))?;
        self.nodes.push(node);
        Ok(())
    }

    fn put(&mut self, slot: impl FnOnce(&mut Self) -> Result<u32, FormatError>) -> Result<(), FormatError> {
        let (slot, top) = (slot(self)?, self.top()?);
        self.reserve(2 * size_of::<(u32, Value)>())?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn get(&mut self, slot: impl FnOnce(&mut Self) -> Result<u32, FormatError>) -> Result<(), FormatError> {
        let slot = slot(self)?;
        let value = self.memo.get(&slot).copied().ok_or_else(|| corrupt("recalls a value that it never stored"))?;
        self.push(value)
    }

    fn text(&mut self, len: usize) -> Result<(), FormatError> {
        let text = self.take(len)?;
        // Python 2 strings need not be UTF-8; those that are not name no tensor.
        self.push(std::str::from_utf8(text).map_or(Value::Other, Value::Text))
    }

    fn other(&mut self, len: usize) -> Result<(), FormatError> {
        self.take(len)?;
        self.push(Value::Other)
    }

    // --- collections --------------------------------------------------------------------------

    fn append(&mut self, items: Vec<Value<'a>>) -> Result<(), FormatError> {
        self.reserve_values(items.len())?;
        match self.top()? {
            Value::Node(node) => match self.nodes.get_mut(node) {
                Some(Node::List(list)) => list.extend(items),
                _ => return Err(corrupt("appends to something that is not a list")),
            },
            _ => return Err(corrupt("appends to something that is not a list")),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[Value<'a>]) -> Result<(), FormatError> {
        self.reserve_values(items.len())?;
        let not_a_dictionary = || corrupt("sets an entry of something that is not a dictionary");
        let Value::Node(node) = self.top()? else { return Err(not_a_dictionary()) };
        let Some(Node::Dict(entries)) = self.nodes.get_mut(node) else { return Err(not_a_dictionary()) };
        if !items.len().is_multiple_of(2) {
            return Err(corrupt("has a key without a value"));
        }
        entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        Ok(())
    }
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
