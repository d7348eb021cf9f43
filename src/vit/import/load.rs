//! From a file to a protobuf that tract can analyse completely: one image, a fixed size, `f32`.

use std::path::Path;

use tract_onnx::data_resolver::MmapDataResolver;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::Dimension;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use tract_onnx::prelude::Framework;
use tract_onnx::tensor::load_tensor;

use super::{ImportError, Refusal, guarded};
use crate::vit::Pixels;

/// Used when neither the export nor a position table fixes the image size.
const USUAL_IMAGE: Pixels = 224;
/// No model takes larger images; a larger figure is a corrupt file.
const MAX_IMAGE: Pixels = 4096;

/// An ONNX model whose image input is `[1, 3, image, image]` and whose floats are all `f32`.
pub(super) struct Loaded {
    pub model: ModelProto,
    /// Name of the image input.
    pub input: String,
    pub image: Pixels,
}

/// Reads and prepares the model at `path`. External data is left for tract to resolve, which
/// refuses locations outside the model's own folder.
pub(super) fn load(path: &Path) -> Result<Loaded, ImportError> {
    let length = std::fs::metadata(path)
        .map_err(|source| ImportError::Read {
            path: path.to_owned(),
            source,
        })?
        .len();
    let not_onnx = |reason: String| ImportError::NotOnnx {
        path: path.to_owned(),
        reason,
    };
    if length == 0 {
        return Err(not_onnx("it is empty".into()));
    }
    let mut model = guarded(|| tract_onnx::onnx().proto_model_for_path(path)).map_err(not_onnx)?;
    let graph = model
        .graph
        .as_mut()
        .ok_or_else(|| not_onnx("it holds no graph".into()))?;
    let (input, image) = image_input(graph).map_err(|refusal| refusal.at(path))?;
    widen(graph, folder_of(path)).map_err(not_onnx)?;
    for entry in &mut graph.input {
        if entry.name == input {
            set_shape(entry, &[1, 3, image, image]);
        }
    }
    // tract would index its outputs by name without asking whether a node produces them; the
    // outputs that matter are chosen later, at the block boundaries.
    graph.output.clear();
    Ok(Loaded {
        model,
        input,
        image,
    })
}

/// The one four-dimensional input, and the side of the image it takes.
fn image_input(graph: &GraphProto) -> Result<(String, Pixels), Refusal> {
    let is_weight = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    let images: Vec<_> = graph
        .input
        .iter()
        .filter(|entry| !is_weight(&entry.name))
        .filter_map(|entry| dims(entry).filter(|d| d.len() == 4).map(|d| (entry, d)))
        .collect();
    let [(entry, dims)] = images.as_slice() else {
        return Err(Refusal::new(
            "image input",
            format!(
                "expected one four-dimensional input, found {}",
                images.len()
            ),
        ));
    };
    if dims[1].is_some_and(|channels| channels != 3) {
        return Err(Refusal::new(
            "image input",
            format!("expected 3 channels [batch, 3, height, width], found {dims:?}"),
        ));
    }
    let image = match (dims[2], dims[3]) {
        (Some(height), Some(width)) if height == width => height,
        (Some(height), Some(width)) => {
            return Err(Refusal::new(
                "image input",
                format!("expected a square image, found {width} x {height} pixels"),
            ));
        }
        _ => likely_image(graph),
    };
    if image == 0 || image > MAX_IMAGE {
        return Err(Refusal::new(
            "image input",
            format!("expected 1 to {MAX_IMAGE} pixels a side, found {image}"),
        ));
    }
    Ok((entry.name.clone(), image))
}

/// For an export with free height and width: the size its position table is made for.
fn likely_image(graph: &GraphProto) -> Pixels {
    let patch = graph.node.iter().find_map(patch_stride).unwrap_or(1);
    let grid = graph
        .initializer
        .iter()
        .filter(|tensor| tensor.dims.len() == 3 && tensor.dims[0] == 1)
        .filter_map(|tensor| usize::try_from(tensor.dims[1]).ok())
        .filter_map(|rows| {
            let grid = rows.isqrt();
            // A table may hold a class and a distillation entry besides the patches.
            (grid > 2 && rows - grid * grid <= 2).then_some(grid)
        })
        .max();
    grid.map_or(USUAL_IMAGE / patch * patch, |grid| grid * patch)
}

/// The stride of a Conv whose kernel is as large as its stride.
fn patch_stride(node: &NodeProto) -> Option<usize> {
    let ints = |name: &str| {
        node.attribute
            .iter()
            .find(|attribute| attribute.name == name)
            .map(|attribute| attribute.ints.as_slice())
    };
    let strides = ints("strides").filter(|_| node.op_type == "Conv")?;
    let patch = usize::try_from(*strides.first()?).ok()?;
    (patch > 1 && Some(strides) == ints("kernel_shape")).then_some(patch)
}

fn dims(entry: &ValueInfoProto) -> Option<Vec<Option<usize>>> {
    let Value::TensorType(tensor) = entry.r#type.as_ref()?.value.as_ref()?;
    let shape = tensor.shape.as_ref()?;
    let fixed = |dim: &Dimension| match dim.value {
        Some(Dim::DimValue(length)) => usize::try_from(length).ok(),
        _ => None,
    };
    Some(shape.dim.iter().map(fixed).collect())
}

fn set_shape(entry: &mut ValueInfoProto, shape: &[usize]) {
    let Some(Value::TensorType(tensor)) = entry.r#type.as_mut().and_then(|t| t.value.as_mut())
    else {
        return;
    };
    if let Some(dims) = tensor.shape.as_mut() {
        for (dim, &length) in dims.dim.iter_mut().zip(shape) {
            dim.value = i64::try_from(length).ok().map(Dim::DimValue);
        }
    }
}

/// Turns half-precision weights, casts and inputs into `f32`, so that parity is measured at the
/// precision fledge computes in.
fn widen(graph: &mut GraphProto, folder: &Path) -> Result<(), String> {
    for tensor in &mut graph.initializer {
        widen_tensor(tensor, folder)?;
    }
    for node in &mut graph.node {
        for attribute in &mut node.attribute {
            if let Some(tensor) = attribute.t.as_mut() {
                widen_tensor(tensor, folder)?;
            }
            if node.op_type == "Cast" && attribute.name == "to" && is_half(attribute.i) {
                attribute.i = DataType::Float as i64;
            }
        }
    }
    for entry in graph.input.iter_mut().chain(&mut graph.value_info) {
        if let Some(Value::TensorType(tensor)) =
            entry.r#type.as_mut().and_then(|t| t.value.as_mut())
            && is_half(i64::from(tensor.elem_type))
        {
            tensor.elem_type = DataType::Float as i32;
        }
    }
    Ok(())
}

fn is_half(data_type: i64) -> bool {
    data_type == DataType::Float16 as i64 || data_type == DataType::Bfloat16 as i64
}

/// The bytes come through tract, which resolves external data; that it has no bf16 does not
/// matter, since both halves are 16 bits wide.
fn widen_tensor(tensor: &mut TensorProto, folder: &Path) -> Result<(), String> {
    if !is_half(i64::from(tensor.data_type)) {
        return Ok(());
    }
    let wide: fn(u16) -> f32 = if tensor.data_type == DataType::Bfloat16 as i32 {
        |bits| half::bf16::from_bits(bits).to_f32()
    } else {
        |bits| half::f16::from_bits(bits).to_f32()
    };
    tensor.data_type = DataType::Float16 as i32;
    let stored = guarded(|| load_tensor(&MmapDataResolver, tensor, folder.to_str()))?;
    let (pairs, _) = stored.as_bytes().as_chunks::<2>();
    tensor.raw_data = pairs
        .iter()
        .flat_map(|&pair| wide(u16::from_ne_bytes(pair)).to_le_bytes())
        .collect();
    tensor.int32_data.clear();
    tensor.external_data.clear();
    tensor.data_location = None;
    tensor.data_type = DataType::Float as i32;
    Ok(())
}

/// The folder a file lies in; a model's external data must lie there too.
pub(super) fn folder_of(path: &Path) -> &Path {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}
