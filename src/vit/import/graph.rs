//! A light view of an ONNX graph: who produces and who reads a value, its shape, and its contents
//! where they are constant. tract infers the shapes and folds the constants.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use tract_onnx::pb::{AttributeProto, NodeProto};
use tract_onnx::tract_hir::internal::*;

use super::load::{Loaded, folder_of};
use super::{ImportError, Refusal, guarded};
use crate::vit::Pixels;

/// Longest chain of nodes that is followed; a ViT's longest within a block is about thirty.
pub(super) const MAX_CHAIN: usize = 200;

pub(super) struct Graph {
    nodes: Vec<NodeProto>,
    /// Node and output slot that produce a value.
    producers: HashMap<String, (usize, usize)>,
    /// Nodes that read a value under any of its names.
    consumers: HashMap<String, Vec<usize>>,
    model: InferenceModel,
    outlets: HashMap<String, OutletId>,
    /// What stopped tract's shape inference, if anything did.
    inference_error: Option<String>,
    constant: RefCell<HashMap<String, bool>>,
    pub input: String,
    pub image: Pixels,
}

impl Graph {
    /// Hands the graph to tract for shapes and constants. The protobuf's weights are dropped.
    pub fn new(loaded: Loaded, path: &Path) -> Result<Self, ImportError> {
        let Loaded {
            model: proto,
            input,
            image,
        } = loaded;
        let parsed = guarded(|| {
            let onnx = tract_onnx::onnx().with_ignore_value_info(true);
            let mut parsed = onnx.parse(&proto, folder_of(path).to_str())?;
            // Unknown operators behind the last norm are none of our business, so inference goes
            // on past errors; one that matters shows as a missing shape.
            let error = parsed.model.analyse(true).err();
            Ok((parsed, error))
        });
        let (parsed, error) = parsed.map_err(|reason| ImportError::NotOnnx {
            path: path.to_owned(),
            reason,
        })?;
        let nodes = proto.graph.map(|graph| graph.node).unwrap_or_default();
        let mut producers = HashMap::new();
        for (index, node) in nodes.iter().enumerate() {
            for (slot, output) in node.output.iter().enumerate() {
                producers.insert(output.clone(), (index, slot));
            }
        }
        let mut graph = Self {
            nodes,
            producers,
            consumers: HashMap::new(),
            model: parsed.model,
            outlets: parsed.outlets_by_name,
            inference_error: error.map(|e| e.root_cause().to_string()),
            constant: RefCell::default(),
            input,
            image,
        };
        let mut consumers: HashMap<String, Vec<usize>> = HashMap::new();
        for (index, node) in graph.nodes.iter().enumerate() {
            if graph.aliased(node).is_none() {
                for input in &node.input {
                    let readers = consumers
                        .entry(graph.canonical(input).to_owned())
                        .or_default();
                    readers.push(index);
                }
            }
        }
        graph.consumers = consumers;
        Ok(graph)
    }

    pub fn nodes(&self) -> &[NodeProto] {
        &self.nodes
    }

    /// The value that `name` is only another name for.
    pub fn canonical<'a>(&'a self, name: &'a str) -> &'a str {
        let mut name = name;
        for _ in 0..MAX_CHAIN {
            match self
                .producer(name)
                .and_then(|(node, slot)| self.aliased(node).filter(|_| slot == 0))
            {
                Some(earlier) => name = earlier,
                None => break,
            }
        }
        name
    }

    /// The input of a node that changes nothing: Identity, Dropout, a cast from float to float, the
    /// guard that PyTorch puts behind a Softmax against rows that are masked completely.
    fn aliased<'a>(&self, node: &'a NodeProto) -> Option<&'a str> {
        let mut input = node.input.first()?;
        let output = node.output.first()?;
        let same = match node.op_type.as_str() {
            "Identity" | "Dropout" => true,
            "Cast" => self.is_float(input) && self.is_float(output),
            "Where" => {
                let condition = self.producer(input).map(|(node, _)| node)?;
                let guarded = node.input.get(2)?;
                input = guarded;
                condition.op_type == "IsNaN" && condition.input.first() == Some(guarded)
            }
            _ => false,
        };
        same.then_some(input)
    }

    fn is_float(&self, value: &str) -> bool {
        self.fact(value)
            .and_then(|fact| fact.datum_type.concretize())
            == Some(f32::datum_type())
    }

    pub fn producer(&self, value: &str) -> Option<(&NodeProto, usize)> {
        let &(node, slot) = self.producers.get(value)?;
        Some((&self.nodes[node], slot))
    }

    /// The operator that computes a value, for messages.
    pub fn operator(&self, value: &str) -> &str {
        self.producer(value)
            .map_or("the image input", |(node, _)| &node.op_type)
    }

    /// Nodes that read a value, in the graph's order.
    pub fn readers(&self, value: &str) -> impl Iterator<Item = &NodeProto> {
        let readers = self.consumers.get(self.canonical(value));
        readers.into_iter().flatten().map(|&node| &self.nodes[node])
    }

    fn fact(&self, value: &str) -> Option<&InferenceFact> {
        self.model.outlet_fact(*self.outlets.get(value)?).ok()
    }

    /// The shape of a value for one image.
    pub fn shape(&self, value: &str) -> Result<Vec<usize>, Refusal> {
        let shape = self
            .fact(value)
            .and_then(|fact| fact.shape.as_concrete_finite().ok().flatten());
        shape.map(|shape| shape.to_vec()).ok_or_else(|| {
            let cause = self.inference_error.as_deref().unwrap_or("no further clue");
            Refusal::new(
                "shapes",
                format!("the shape of `{value}` cannot be worked out: {cause}"),
            )
        })
    }

    /// Whether a value depends on no input.
    pub fn is_constant(&self, value: &str) -> bool {
        self.is_constant_within(value, MAX_CHAIN)
    }

    fn is_constant_within(&self, value: &str, left: usize) -> bool {
        if self
            .fact(value)
            .is_some_and(|fact| fact.value.is_concrete())
        {
            return true;
        }
        if let Some(&known) = self.constant.borrow().get(value) {
            return known;
        }
        let constant = left > 0
            && self.producer(value).is_some_and(|(node, _)| {
                let mut inputs = node
                    .input
                    .iter()
                    .filter(|input| !input.is_empty())
                    .peekable();
                inputs.peek().is_some()
                    && inputs.all(|input| self.is_constant_within(input, left - 1))
            });
        self.constant
            .borrow_mut()
            .insert(value.to_owned(), constant);
        constant
    }

    /// The contents of a constant value as `f32`.
    pub fn constant(&self, value: &str) -> Result<Arc<Tensor>, Refusal> {
        let tensor = self.evaluate(value, &mut HashMap::new())?;
        if tensor.datum_type() == f32::datum_type() {
            return Ok(tensor);
        }
        match tensor.cast_to::<f32>() {
            Ok(wide) => Ok(wide.into_owned().into_arc_tensor()),
            Err(e) => Err(Refusal::new("constants", format!("`{value}`: {e}"))),
        }
    }

    /// The contents of a small constant vector of integers, such as axes or sizes.
    pub fn integers(&self, value: &str) -> Result<Vec<i64>, Refusal> {
        let tensor = self.evaluate(value, &mut HashMap::new())?;
        let integers = tensor.cast_to::<i64>().and_then(|tensor| {
            let view = tensor.try_as_plain_ram()?;
            Ok(view.as_slice::<i64>()?.to_vec())
        });
        integers.map_err(|e| Refusal::new("constants", format!("`{value}`: {e}")))
    }

    /// Computes a value with tract's own operators from constants and what is `known` already;
    /// intermediate results join `known`. Names in `known` are canonical.
    pub fn evaluate(
        &self,
        value: &str,
        known: &mut HashMap<String, Arc<Tensor>>,
    ) -> Result<Arc<Tensor>, Refusal> {
        self.evaluate_within(value, known, MAX_CHAIN)
    }

    fn evaluate_within(
        &self,
        value: &str,
        known: &mut HashMap<String, Arc<Tensor>>,
        left: usize,
    ) -> Result<Arc<Tensor>, Refusal> {
        let value = self.canonical(value);
        if let Some(tensor) = known.get(value) {
            return Ok(Arc::clone(tensor));
        }
        if let Some(tensor) = self.fact(value).and_then(|fact| fact.value.concretize()) {
            return Ok(tensor);
        }
        let fail = |reason: String| Refusal::new("constants", reason);
        let (node, slot) = self
            .producer(value)
            .filter(|_| left > 0)
            .ok_or_else(|| fail(format!("`{value}` is not constant")))?;
        let inputs = node
            .input
            .iter()
            .filter(|input| !input.is_empty())
            .map(|input| Ok(self.evaluate_within(input, known, left - 1)?.into_tvalue()))
            .collect::<Result<TVec<_>, Refusal>>()?;
        let outlet = self
            .outlets
            .get(value)
            .ok_or_else(|| fail(format!("`{value}` is unknown to tract")))?;
        let results = guarded(|| self.model.node(outlet.node).op.eval_out_of_plan(inputs))
            .map_err(|reason| fail(format!("{} `{value}`: {reason}", node.op_type)))?;
        let result = results
            .and_then(|results| results.into_iter().nth(slot))
            .ok_or_else(|| fail(format!("tract cannot evaluate {} alone", node.op_type)))?;
        let tensor = result.into_arc_tensor();
        known.insert(value.to_owned(), Arc::clone(&tensor));
        Ok(tensor)
    }

    /// Whether `value` is computed from `origin` and constants alone, through a handful of nodes.
    pub fn computed_from(&self, value: &str, origin: &str, handful: usize) -> bool {
        let mut seen = HashSet::new();
        let mut open = vec![self.canonical(value)];
        while let Some(value) = open.pop() {
            if value == origin || self.is_constant(value) || !seen.insert(value) {
                continue;
            }
            match self.producer(value).filter(|_| seen.len() <= handful) {
                Some((node, _)) => open.extend(
                    node.input
                        .iter()
                        .filter(|input| !input.is_empty())
                        .map(|input| self.canonical(input)),
                ),
                None => return false,
            }
        }
        true
    }

    /// The graph as tract's model, with `outputs` instead of its own; all else is cut off.
    pub fn into_model(self, outputs: &[String]) -> TractResult<InferenceModel> {
        let outlets = outputs
            .iter()
            .map(|name| {
                let outlet = self.outlets.get(name).copied();
                outlet.with_context(|| format!("no value is called {name}"))
            })
            .collect::<TractResult<Vec<_>>>()?;
        self.model.with_output_outlets(&outlets)
    }
}

pub(super) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute
        .iter()
        .find(|attribute| attribute.name == name)
}

/// An integer attribute, or what the operator assumes without it.
pub(super) fn integer(node: &NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).map_or(default, |attribute| attribute.i)
}

/// The `f32` contents of a tensor.
pub(super) fn floats(tensor: &Tensor) -> Result<&[f32], Refusal> {
    tensor
        .try_as_plain_ram()
        .and_then(|view| view.as_slice::<f32>())
        .map_err(|e| Refusal::new("constants", e.to_string()))
}

/// An axis counted from the front.
pub(super) fn axis(axis: i64, rank: usize) -> Result<usize, Refusal> {
    let counted = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(counted)
        .ok()
        .filter(|&axis| axis < rank)
        .ok_or_else(|| Refusal::new("axes", format!("axis {axis} does not fit rank {rank}")))
}
