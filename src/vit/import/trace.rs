//! Where the elements of a tensor come from.
//!
//! Between two matrix products a ViT only moves, scales and shifts numbers: reshapes, transposes,
//! splits, concatenations with constants, bias adds, layer scales. Exporters disagree about which
//! of these and in what order. A [`Trace`] carries out the moves on element records instead of
//! numbers, so that every element of a tensor knows which element of the *source* (the nearest
//! earlier value that is really computed) it is, and by what it was scaled and shifted. What is
//! query, key or value, which column belongs to which head and what is bias can then be read off.

use std::collections::HashMap;
use std::rc::Rc;

use ndarray::{ArrayD, ArrayView3, Axis, IxDyn, Slice, concatenate};
use tract_onnx::pb::NodeProto;

use super::Refusal;
use super::graph::{self, Graph, attribute, floats, integer};

/// Marks an element that is constant: its offset.
pub(super) const CONSTANT: u32 = u32::MAX;
const MAX_DEPTH: usize = 100;
/// Elements of the largest tensor that is traced; ViT-L at 518 px needs 5.6 million.
const MAX_ELEMENTS: usize = 1 << 26;

/// `scale * source[index] + offset`, or just `offset` when `index` is [`CONSTANT`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Element {
    pub index: u32,
    pub scale: f32,
    pub offset: f32,
}

#[derive(Debug, Clone)]
pub(super) struct Trace {
    /// The computed value the elements come from; none when all of them are constant.
    pub source: Option<String>,
    pub elements: ArrayD<Element>,
}

/// One column of a matrix product's output as it appears behind the moves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Column {
    pub from: usize,
    pub scale: f32,
    pub offset: f32,
}

impl Trace {
    pub fn of(graph: &Graph, value: &str) -> Result<Self, Refusal> {
        let mut tracer = Tracer {
            graph,
            memo: HashMap::new(),
        };
        let trace = tracer.trace(value, MAX_DEPTH)?;
        // The memo holds the same trace; without it, nothing has to be copied.
        drop(tracer);
        Ok(Rc::unwrap_or_clone(trace))
    }

    /// The name of the source, where the value is not constant.
    pub fn source(&self) -> Result<&str, Refusal> {
        self.source
            .as_deref()
            .ok_or_else(|| unexpected("a computed value", "a constant"))
    }

    /// The last two axes with everything before them as one: `[groups, rows, columns]`.
    pub fn matrices(&self) -> Result<ArrayView3<'_, Element>, Refusal> {
        let shape = matrices_of(self.elements.shape())?;
        let flat = self.elements.view().into_shape_with_order(shape);
        flat.map_err(|e| unexpected("a contiguous tensor", &e.to_string()))
    }

    /// Columns of a `[tokens, width]` source, see [`columns`].
    pub fn columns(&self, width: usize) -> Result<Vec<Column>, Refusal> {
        columns(self.matrices()?, width)
    }
}

/// `[groups, rows, columns]` of a shape whose leading axes are taken together.
pub(super) fn matrices_of(shape: &[usize]) -> Result<(usize, usize, usize), Refusal> {
    match shape {
        [groups @ .., rows, columns] => Ok((groups.iter().product(), *rows, *columns)),
        _ => Err(unexpected(
            "a matrix",
            &format!("a tensor of shape {shape:?}"),
        )),
    }
}

/// Reads `[groups, tokens, k]` elements of a source `[tokens, width]` as `groups * k` of its
/// columns, after checking that every token is treated alike and none is mixed with another.
pub(super) fn columns(
    elements: ArrayView3<'_, Element>,
    width: usize,
) -> Result<Vec<Column>, Refusal> {
    let mut columns = Vec::with_capacity(elements.dim().0 * elements.dim().2);
    for group in elements.outer_iter() {
        for column in group.axis_iter(Axis(1)) {
            let first = column[0];
            if first.index == CONSTANT || first.index as usize >= width {
                return Err(unexpected(
                    "a column of one matrix product",
                    "tokens mixed with one another",
                ));
            }
            for (token, element) in column.iter().enumerate() {
                if element.index as usize != first.index as usize + token * width
                    || element.scale != first.scale
                    || element.offset != first.offset
                {
                    return Err(unexpected(
                        "the same weights for every token",
                        "tokens treated differently",
                    ));
                }
            }
            columns.push(Column {
                from: first.index as usize,
                scale: first.scale,
                offset: first.offset,
            });
        }
    }
    Ok(columns)
}

struct Tracer<'g> {
    graph: &'g Graph,
    memo: HashMap<String, Rc<Trace>>,
}

impl Tracer<'_> {
    fn trace(&mut self, value: &str, left: usize) -> Result<Rc<Trace>, Refusal> {
        let graph = self.graph;
        let value = graph.canonical(value);
        if let Some(trace) = self.memo.get(value) {
            return Ok(Rc::clone(trace));
        }
        if left == 0 {
            return Err(unexpected("a short chain of moves", "one without end"));
        }
        let trace = if graph.is_constant(value) {
            self.constant(value)?
        } else {
            match graph.producer(value) {
                Some((node, slot)) => match self.step(node, slot, value, left)? {
                    Some(trace) => trace,
                    None => self.leaf(value)?,
                },
                None => self.leaf(value)?,
            }
        };
        let trace = Rc::new(trace);
        self.memo.insert(value.to_owned(), Rc::clone(&trace));
        Ok(trace)
    }

    fn constant(&self, value: &str) -> Result<Trace, Refusal> {
        let tensor = self.graph.constant(value)?;
        let record = |&offset: &f32| Element {
            index: CONSTANT,
            scale: 0.0,
            offset,
        };
        let elements = floats(&tensor)?.iter().map(record).collect();
        Ok(Trace {
            source: None,
            elements: shaped(elements, tensor.shape())?,
        })
    }

    fn leaf(&self, value: &str) -> Result<Trace, Refusal> {
        let shape = self.graph.shape(value)?;
        let length = checked_length(&shape)?;
        let record = |index| Element {
            index,
            scale: 1.0,
            offset: 0.0,
        };
        Ok(Trace {
            source: Some(value.to_owned()),
            elements: shaped((0..length as u32).map(record).collect(), &shape)?,
        })
    }

    /// Carries out one move; nothing when the node computes and is therefore a source itself.
    fn step(
        &mut self,
        node: &NodeProto,
        slot: usize,
        value: &str,
        left: usize,
    ) -> Result<Option<Trace>, Refusal> {
        let left = left - 1;
        let input = |index: usize| -> Result<&str, Refusal> {
            let name = node.input.get(index).filter(|name| !name.is_empty());
            name.map(String::as_str)
                .ok_or_else(|| unexpected("an input", &format!("none on {}", node.op_type)))
        };
        let operator = node.op_type.as_str();
        let (source, elements) = match operator {
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
                let inner = self.trace(input(0)?, left)?;
                let flat = inner.elements.iter().copied().collect();
                let elements = shaped(flat, &self.graph.shape(value)?)?;
                (inner.source.clone(), elements)
            }
            "Transpose" | "Expand" | "Slice" | "Split" | "Gather" => {
                let inner = self.trace(input(0)?, left)?;
                let elements = self.moved(node, slot, value, &inner.elements)?;
                (inner.source.clone(), elements)
            }
            "Concat" => return self.concatenated(node, left).map(Some),
            "Add" | "Sub" | "Mul" | "Div" => {
                let (a, b) = (input(0)?, input(1)?);
                let (constant_a, constant_b) =
                    (self.graph.is_constant(a), self.graph.is_constant(b));
                if !(constant_a || constant_b) || (operator == "Div" && constant_a) {
                    return Ok(None);
                }
                let (a, b) = (self.trace(a, left)?, self.trace(b, left)?);
                let shape = IxDyn(&self.graph.shape(value)?);
                let (x, y) = (
                    a.elements.broadcast(shape.clone()),
                    b.elements.broadcast(shape),
                );
                let (Some(x), Some(y)) = (x, y) else {
                    return Err(unexpected("operands that broadcast", operator));
                };
                let elements = ndarray::Zip::from(&x)
                    .and(&y)
                    .map_collect(|&x, &y| affine(operator, x, y));
                (a.source.clone().or_else(|| b.source.clone()), elements)
            }
            _ => return Ok(None),
        };
        Ok(Some(Trace { source, elements }))
    }

    fn concatenated(&mut self, node: &NodeProto, left: usize) -> Result<Trace, Refusal> {
        let parts = node
            .input
            .iter()
            .map(|input| self.trace(input, left))
            .collect::<Result<Vec<_>, _>>()?;
        let mut source: Option<&String> = None;
        for name in parts.iter().filter_map(|part| part.source.as_ref()) {
            match source {
                Some(known) if known != name => {
                    return Err(unexpected(
                        "a Concat with constants only",
                        &format!("one that joins `{known}` and `{name}`"),
                    ));
                }
                _ => source = Some(name),
            }
        }
        let rank = parts.first().map_or(0, |part| part.elements.ndim());
        let axis = graph::axis(integer(node, "axis", 0), rank)?;
        let views: Vec<_> = parts.iter().map(|part| part.elements.view()).collect();
        let elements = concatenate(Axis(axis), &views)
            .map_err(|e| unexpected("parts that fit in a Concat", &e.to_string()))?;
        checked_length(elements.shape())?;
        Ok(Trace {
            source: source.cloned(),
            elements,
        })
    }

    fn moved(
        &self,
        node: &NodeProto,
        slot: usize,
        value: &str,
        elements: &ArrayD<Element>,
    ) -> Result<ArrayD<Element>, Refusal> {
        let rank = elements.ndim();
        let owned = |view: ndarray::ArrayViewD<'_, Element>| view.as_standard_layout().into_owned();
        match node.op_type.as_str() {
            "Transpose" => {
                let axes: Vec<usize> = match attribute(node, "perm") {
                    Some(perm) => {
                        let axes = perm.ints.iter().map(|&a| graph::axis(a, rank));
                        axes.collect::<Result<_, _>>()?
                    }
                    None => (0..rank).rev().collect(),
                };
                let mut sorted = axes.clone();
                sorted.sort_unstable();
                if sorted != (0..rank).collect::<Vec<_>>() {
                    return Err(unexpected("a permutation", &format!("{axes:?}")));
                }
                Ok(owned(elements.view().permuted_axes(axes)))
            }
            "Expand" => {
                let shape = self.graph.shape(value)?;
                checked_length(&shape)?;
                let wide = elements.broadcast(IxDyn(&shape));
                wide.map(owned)
                    .ok_or_else(|| unexpected("a shape to expand to", &format!("{shape:?}")))
            }
            "Slice" => self.sliced(node, elements).map(|view| owned(view.view())),
            "Split" => {
                let axis = graph::axis(integer(node, "axis", 0), rank)?;
                let mut start = 0;
                for earlier in node.output.iter().take(slot) {
                    start += self.graph.shape(earlier)?.get(axis).copied().unwrap_or(0);
                }
                let length = self.graph.shape(value)?.get(axis).copied().unwrap_or(0);
                if start + length > elements.len_of(Axis(axis)) {
                    return Err(unexpected("a split within its tensor", "one beyond it"));
                }
                let part = Slice::from(start..start + length);
                Ok(owned(elements.slice_axis(Axis(axis), part)))
            }
            _ => self.gathered(node, value, elements),
        }
    }

    fn sliced(
        &self,
        node: &NodeProto,
        elements: &ArrayD<Element>,
    ) -> Result<ArrayD<Element>, Refusal> {
        let list = |index: usize, name: &str| -> Result<Option<Vec<i64>>, Refusal> {
            match node.input.get(index).filter(|input| !input.is_empty()) {
                Some(input) => self.graph.integers(input).map(Some),
                None => Ok(attribute(node, name).map(|a| a.ints.clone())),
            }
        };
        let starts = list(1, "starts")?.unwrap_or_default();
        let ends = list(2, "ends")?.unwrap_or_default();
        let axes = list(3, "axes")?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = list(4, "steps")?.unwrap_or_else(|| vec![1; starts.len()]);
        let mut part = elements.clone();
        for (((&start, &end), &axis), &step) in starts.iter().zip(&ends).zip(&axes).zip(&steps) {
            let axis = graph::axis(axis, part.ndim())?;
            if step != 1 {
                return Err(unexpected("slices of step 1", &format!("step {step}")));
            }
            let length = part.len_of(Axis(axis)) as i64;
            let clamp = |at: i64| if at < 0 { at + length } else { at }.clamp(0, length) as usize;
            let (start, end) = (clamp(start), clamp(end));
            part.slice_axis_inplace(Axis(axis), Slice::from(start..end.max(start)));
        }
        Ok(part)
    }

    fn gathered(
        &self,
        node: &NodeProto,
        value: &str,
        elements: &ArrayD<Element>,
    ) -> Result<ArrayD<Element>, Refusal> {
        let axis = graph::axis(integer(node, "axis", 0), elements.ndim())?;
        let indices = match node
            .input
            .get(1)
            .filter(|name| self.graph.is_constant(name))
        {
            Some(indices) => self.graph.integers(indices)?,
            None => return Err(unexpected("constant Gather indices", "computed ones")),
        };
        let length = elements.len_of(Axis(axis));
        let indices = indices
            .into_iter()
            .map(|index| graph::axis(index, length))
            .collect::<Result<Vec<_>, _>>()?;
        let picked = elements.select(Axis(axis), &indices);
        shaped(picked.iter().copied().collect(), &self.graph.shape(value)?)
    }
}

/// `x op y` where at most one of the two is computed.
fn affine(operator: &str, x: Element, y: Element) -> Element {
    let (computed, constant) = if y.index == CONSTANT { (x, y) } else { (y, x) };
    let c = constant.offset;
    let (scale, offset) = match operator {
        "Add" => (computed.scale, computed.offset + c),
        "Sub" if y.index == CONSTANT => (x.scale, x.offset - c),
        "Sub" => (-y.scale, c - y.offset),
        "Mul" => (computed.scale * c, computed.offset * c),
        _ => (x.scale / c, x.offset / c),
    };
    Element {
        index: computed.index,
        scale,
        offset,
    }
}

fn checked_length(shape: &[usize]) -> Result<usize, Refusal> {
    shape
        .iter()
        .try_fold(1usize, |length, &dim| length.checked_mul(dim))
        .filter(|&length| length > 0 && length <= MAX_ELEMENTS)
        .ok_or_else(|| unexpected("a tensor of workable size", &format!("shape {shape:?}")))
}

fn shaped(elements: Vec<Element>, shape: &[usize]) -> Result<ArrayD<Element>, Refusal> {
    checked_length(shape)?;
    ArrayD::from_shape_vec(IxDyn(shape), elements)
        .map_err(|e| unexpected("a tensor that fits its shape", &e.to_string()))
}

/// What was expected and what was found, before the caller says where.
pub(super) fn unexpected(expected: &str, found: &str) -> Refusal {
    Refusal::new("dataflow", format!("expected {expected}, found {found}"))
}
