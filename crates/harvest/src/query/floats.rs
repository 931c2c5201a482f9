//! Stored numbers as fp32, and the function `floats` of SQL.

use std::sync::Arc;

use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float16Type, Float32Type};
use arrow_array::{Array, ArrayRef, FixedSizeListArray, Float32Array, ListArray};
use arrow_schema::{DataType, Field, FieldRef};
use datafusion::common::plan_err;
use datafusion::error::Result;
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};
use half::bf16;

/// `floats(column)`: lists of fp16, and bytes of bf16, as lists of fp32.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Floats {
    signature: Signature,
}

impl Floats {
    pub(super) fn new() -> Self {
        Floats { signature: Signature::any(1, Volatility::Immutable) }
    }
}

impl ScalarUDFImpl for Floats {
    fn name(&self) -> &str {
        "floats"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        match arguments {
            [of] => type_of(of),
            _ => plan_err!("floats takes one column, and not {}", arguments.len()),
        }
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let arrays = ColumnarValue::values_to_arrays(&arguments.args)?;
        Ok(ColumnarValue::Array(floats(&arrays[0])?))
    }
}

fn item() -> FieldRef {
    Arc::new(Field::new("item", DataType::Float32, false))
}

fn type_of(stored: &DataType) -> Result<DataType> {
    match stored {
        DataType::FixedSizeBinary(bytes) if bytes % 2 == 0 => Ok(DataType::FixedSizeList(item(), bytes / 2)),
        DataType::FixedSizeList(of, width) if is_float(of) => Ok(DataType::FixedSizeList(item(), *width)),
        DataType::List(of) if is_float(of) => Ok(DataType::List(item())),
        other => plan_err!("floats takes a column of activations, and not one of {other}"),
    }
}

fn is_float(of: &FieldRef) -> bool {
    matches!(of.data_type(), DataType::Float16 | DataType::Float32)
}

/// A column of activations with its numbers as fp32.
pub(super) fn floats(stored: &ArrayRef) -> Result<ArrayRef> {
    let to = type_of(stored.data_type())?;
    Ok(match (stored.data_type(), &to) {
        (DataType::FixedSizeBinary(_), DataType::FixedSizeList(item, width)) => {
            let rows = stored.as_fixed_size_binary();
            let numbers = rows.iter().flat_map(|row| row.unwrap_or_default().chunks_exact(2));
            let values =
                Float32Array::from_iter_values(numbers.map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f32()));
            Arc::new(FixedSizeListArray::try_new(item.clone(), *width, Arc::new(values), None)?)
        }
        (DataType::FixedSizeList(..), DataType::FixedSizeList(item, width)) => {
            let lists = stored.as_fixed_size_list();
            // A slice of lists has the values of all.
            let from = lists.value_offset(0).max(0) as usize;
            let values = lists.values().slice(from, lists.len() * *width as usize);
            Arc::new(FixedSizeListArray::try_new(item.clone(), *width, Arc::new(numbers(&values)), None)?)
        }
        (_, DataType::List(item)) => {
            let lists = stored.as_list::<i32>();
            let values = Arc::new(numbers(lists.values()));
            Arc::new(ListArray::try_new(item.clone(), lists.offsets().clone(), values, None)?)
        }
        (other, _) => return plan_err!("floats takes a column of activations, and not one of {other}"),
    })
}

/// Numbers as fp32.
pub(super) fn numbers(values: &ArrayRef) -> Float32Array {
    match values.as_primitive_opt::<Float16Type>() {
        Some(halves) => Float32Array::from_iter_values(halves.values().iter().map(|half| half.to_f32())),
        None => values.as_primitive::<Float32Type>().clone(),
    }
}
