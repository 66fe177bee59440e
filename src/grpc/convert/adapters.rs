//! Adapters and uploads.

use super::super::pb;
use super::{BadMessage, adapter_name, adapter_version, saturate};
use crate::adapters::{
    AdapterInfo, AdapterState, Expected, FileHeader, Published, Staged, StoredAdapter, UploadHeader, UploadStatus,
};
use crate::types::{AdapterFacts, ClientKey};

pub(in crate::grpc) fn upload_header(header: pb::UploadHeader, client: ClientKey) -> Result<UploadHeader, BadMessage> {
    let pb::UploadHeader { name, files, upload_id, expected_version, validate_only, pin, config: _, chat_template: _ } =
        header;
    let upload_id = match upload_id.as_str() {
        "" => None,
        id => Some(id.parse().map_err(|_| BadMessage::UploadId)?),
    };
    let expected = match expected_version.as_deref() {
        None => Expected::Any,
        Some("") => Expected::Absent,
        Some(version) => Expected::Version(adapter_version("header.expected_version", version)?),
    };
    let file = |pb::UploadFile { path, size, sha256 }| FileHeader { path, size, sha256 };
    Ok(UploadHeader {
        name: adapter_name("header.name", &name)?,
        files: files.into_iter().map(file).collect(),
        upload_id,
        expected,
        validate_only,
        pin,
        client,
    })
}

/// A name that must not exist cannot be deleted, so here the empty version is no version.
pub(in crate::grpc) fn expected_for_delete(version: Option<&str>) -> Result<Expected, BadMessage> {
    match version {
        None => Ok(Expected::Any),
        Some(version) => adapter_version("expected_version", version).map(Expected::Version),
    }
}

pub(in crate::grpc) fn adapter(info: &AdapterInfo) -> pb::Adapter {
    let status = &info.status;
    let state = match status.state {
        AdapterState::Stored => pb::AdapterState::Stored,
        AdapterState::Loading => pb::AdapterState::Loading,
        AdapterState::Resident => pb::AdapterState::Resident,
        AdapterState::Evicting => pb::AdapterState::Evicting,
    };
    pb::Adapter {
        state: state.into(),
        active_requests: saturate(status.leases),
        // What keeps every request away goes before what befell one.
        last_error: info
            .mismatch
            .as_ref()
            .map(ToString::to_string)
            .or_else(|| status.last_error.clone())
            .unwrap_or_default(),
        base_digest: info.base.map(|base| base.to_string()).unwrap_or_default(),
        base_mismatch: info.mismatch.is_some(),
        ..described(stored(&info.stored), status.facts.as_deref())
    }
}

/// An adapter as it was when its upload was acknowledged.
pub(in crate::grpc) fn published(published: &Published) -> pb::Adapter {
    let state = pb::AdapterState::Stored.into();
    pb::Adapter { state, ..described(stored(&published.adapter), Some(&published.facts)) }
}

/// An adapter as it would be, had it not been sent for validation only.
pub(in crate::grpc) fn preview(staged: &Staged, facts: &AdapterFacts) -> pb::Adapter {
    let adapter = pb::Adapter {
        name: staged.name().to_string(),
        version: staged.version().to_string(),
        pinned: staged.pin(),
        stored_bytes: staged.files().iter().map(|file| file.size).sum(),
        has_chat_template: staged.has_chat_template(),
        has_own_tokens: staged.has_own_tokens(),
        ..pb::Adapter::default()
    };
    described(adapter, Some(facts))
}

fn stored(stored: &StoredAdapter) -> pb::Adapter {
    let created = std::time::UNIX_EPOCH + std::time::Duration::from_millis(stored.created_ms);
    pb::Adapter {
        name: stored.name.to_string(),
        version: stored.version.to_string(),
        pinned: stored.pinned,
        stored_bytes: stored.bytes(),
        has_chat_template: stored.chat_template().is_some(),
        has_own_tokens: stored.own_tokens().is_some(),
        create_time: Some(created.into()),
        ..pb::Adapter::default()
    }
}

fn described(adapter: pb::Adapter, facts: Option<&AdapterFacts>) -> pb::Adapter {
    let Some(facts) = facts else { return adapter };
    let op_count = |(class, count): (&crate::types::OpClass, &u32)| pb::OpCount {
        op_class: class.as_str().to_owned(),
        count: *count,
    };
    pb::Adapter {
        kind: facts.kind.clone(),
        group: facts.group.map_or_else(String::new, |group| group.as_str().to_owned()),
        task: facts.task.as_str().to_owned(),
        labels: facts.task.labels(),
        min_rank: facts.min_rank,
        max_rank: facts.max_rank,
        targets: facts.targets.clone(),
        unknown_fields: facts.unknown_fields.clone(),
        ops: facts.ops.iter().map(op_count).collect(),
        parameters: facts.parameters,
        device_bytes: facts.device_bytes,
        virtual_tokens: facts.virtual_tokens.map_or(0, |virtual_tokens| virtual_tokens.count),
        invocation_tokens: facts.invocation_tokens.clone(),
        keeps_base_kv: facts.keeps_base_kv,
        base_layers: facts.base_layers,
        vocab_size: facts.vocab_size.unwrap_or(0),
        ..adapter
    }
}

pub(in crate::grpc) fn upload(upload_id: String, status: &UploadStatus) -> pb::Upload {
    match status {
        UploadStatus::Open(files) => {
            let file = |file: &crate::adapters::FileProgress| pb::UploadedFile {
                path: file.path.clone(),
                size: file.size,
                committed_size: file.committed,
            };
            pb::Upload { upload_id, files: files.iter().map(file).collect(), adapter: None }
        }
        UploadStatus::Finished(done) => pb::Upload { upload_id, files: Vec::new(), adapter: Some(published(done)) },
    }
}
