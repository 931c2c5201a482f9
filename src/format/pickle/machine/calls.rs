//! What a pickle may name and call: dictionaries, tensors, parameters and storages. All else is refused.

use super::super::super::error::quoted;
use super::super::super::FormatError;
use super::super::{Function, Node, Storage, Strided, Value};
use super::{corrupt, Machine};

/// As many dimensions as libtorch takes.
const MAX_DIMS: usize = 64;

/// Storages' keys are numbers in decimal.
const MAX_KEY: usize = 100;

impl<'a> Machine<'a> {
    pub(super) fn name(&mut self, module: &str, name: &str) -> Result<(), FormatError> {
        let function = Function::find(module, name).ok_or_else(|| refused(module, name))?;
        self.push(Value::Function(function))
    }

    pub(super) fn call(&mut self, function: Value<'a>, arguments: Value<'a>) -> Result<(), FormatError> {
        let Some(arguments) = self.tuple(arguments) else { return Err(corrupt("calls without arguments")) };
        match function {
            Value::Function(Function::OrderedDict) => {
                // Nothing, or one list of pairs.
                let pairs = arguments.first().and_then(|list| self.tuple(*list)).unwrap_or(&[]);
                let n_pairs = pairs.len();
                let entries = pairs.iter().map(|pair| match self.tuple(*pair) {
                    Some([key, value]) => Ok((*key, *value)),
                    _ => Err(corrupt("makes a dictionary of something that is not pairs")),
                });
                let entries: Vec<_> = entries.collect::<Result<_, _>>()?;
                self.reserve_values(2 * n_pairs)?;
                self.push_node(Node::Dict(entries))
            }
            Value::Function(Function::RebuildTensor) => {
                let tensor = self.strided(arguments);
                let tensor = tensor.ok_or_else(|| corrupt("has a tensor without a place, shape or strides"))?;
                self.reserve(size_of::<Strided>() + 2 * size_of_val(tensor.shape.as_slice()))?;
                self.push_node(Node::Tensor(Box::new(tensor)))
            }
            Value::Function(Function::RebuildParameter) => {
                let tensor = *arguments.first().ok_or_else(|| corrupt("has a parameter without a tensor"))?;
                self.push(tensor)
            }
            _ => Err(corrupt("calls something that is not a function: refused")),
        }
    }

    fn tuple(&self, value: Value) -> Option<&[Value<'a>]> {
        match value {
            Value::Node(node) => match self.nodes.get(node)? {
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
        let Value::Node(storage) = storage else { return None };
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
    pub(super) fn storage(&self, id: Value) -> Result<Storage<'a>, FormatError> {
        use Value::{Function as Called, Int, None as Nothing, Text};
        match self.tuple(id) {
            Some(
                [Text("storage"), Called(Function::Storage(dtype)), Text(key), _, Int(len)]
                | [Text("storage"), Called(Function::Storage(dtype)), Text(key), _, Int(len), Nothing],
            ) if key.len() <= MAX_KEY => {
                let len = usize::try_from(*len).map_err(|_| corrupt("has a storage of negative length"))?;
                Ok(Storage { key, dtype: *dtype, len })
            }
            _ => Err(corrupt("refers to something outside it that is not a storage")),
        }
    }
}

/// Refuses to run something.
pub(super) fn refused(module: &str, name: &str) -> FormatError {
    FormatError::Refused { function: format!("{}.{}", quoted(module), quoted(name)) }
}
