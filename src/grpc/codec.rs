//! Messages as prost has them. Bytes that are no message are the client's mistake, and its answer names the field.

use std::marker::PhantomData;

use bytes::Buf;
use prost::{DecodeError, Message, Name};
use tonic::Status;
use tonic::codec::{DecodeBuf, Decoder};
use tonic_prost::ProstEncoder;

use super::{malformed, status};
use crate::types::Problem;

/// The codec of every method that is served.
pub(crate) struct Codec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for Codec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> tonic::codec::Codec for Codec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = RequestDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        RequestDecoder(PhantomData)
    }
}

/// Decodes what clients send.
pub(crate) struct RequestDecoder<U>(PhantomData<U>);

impl<U: Message + Name + Default> Decoder for RequestDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let bytes = buf.copy_to_bytes(buf.remaining());
        // A second handle on the same bytes.
        U::decode(bytes.clone()).map(Some).map_err(|error| refused::<U>(&bytes, &error))
    }
}

fn refused<U: Name>(bytes: &[u8], error: &DecodeError) -> Status {
    let field = malformed::broken_field(&U::full_name(), bytes);
    status::of_problem(Problem::invalid("MALFORMED_MESSAGE", field, error))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::super::pb;
    use super::*;

    fn refusal<U: Message + Name + Default>(bytes: &[u8]) -> Option<(Status, DecodeError)> {
        U::decode(bytes).err().map(|error| (refused::<U>(bytes, &error), error))
    }

    fn field(status: &Status) -> String {
        status.get_details_bad_request().unwrap().field_violations[0].field.clone()
    }

    /// The way to a field as prost's own words have it.
    fn way(error: &DecodeError) -> String {
        let text = error.to_string();
        let steps = text.strip_prefix("failed to decode Protobuf message: ").unwrap().split(": ");
        let steps = steps.map_while(|step| step.split_once('.').filter(|_| !step.contains(' ')));
        let mut path: Vec<&str> = steps.map(|(_, field)| field).collect();
        path.reverse();
        if path.is_empty() { "message".to_owned() } else { path.join(".") }
    }

    #[test]
    fn bytes_that_are_no_message_name_the_field() {
        // A prompt of two bytes that are not UTF-8; sampling whose top_k is a text; a length beyond the end.
        let cases = [
            (&[0x22u8, 2, 0xff, 0xfe][..], "input"),
            (&[0x3a, 3, 0x12, 1, b'x'], "sampling.top_k"),
            (&[0xff; 11], "message"),
        ];
        for (bytes, wanted) in cases {
            let (status, error) = refusal::<pb::GenerateRequest>(bytes).unwrap();
            assert_eq!((status.code(), field(&status).as_str()), (Code::InvalidArgument, wanted), "{error}");
            assert_eq!(status.get_details_error_info().unwrap().reason, "MALFORMED_MESSAGE");
            assert_eq!(status.message(), error.to_string());
        }
        assert!(refusal::<pb::GenerateRequest>(&[0x22, 2, b'h', b'i']).is_none());
    }

    fn requests() -> Vec<Vec<u8>> {
        let message = |text: &str| pb::ChatMessage { role: "user".to_owned(), content: text.to_owned() };
        let variable = |kind| prost_types::Value { kind: Some(kind) };
        let inner = prost_types::Struct {
            fields: [("a".to_owned(), variable(prost_types::value::Kind::StringValue("b".to_owned())))].into(),
        };
        let kwargs = prost_types::Struct {
            fields: [("x".to_owned(), variable(prost_types::value::Kind::StructValue(inner)))].into(),
        };
        let chat = pb::Chat {
            messages: vec![message("é"), message("two")],
            template_kwargs: Some(kwargs),
            ..Default::default()
        };
        let sampling =
            pb::SamplingParams { temperature: Some(0.5), logit_bias: [(3, 1.0)].into(), ..Default::default() };
        let stopping =
            pb::StoppingParams { stop: vec!["x".to_owned()], stop_token_ids: vec![1, 2, 300], ..Default::default() };
        let request = |input| pb::GenerateRequest {
            adapter: "sql".to_owned(),
            input: Some(input),
            sampling: Some(sampling.clone()),
            stopping: Some(stopping.clone()),
            ..Default::default()
        };
        let ids = pb::TokenIds { ids: vec![1, 2, 300] };
        [pb::generate_request::Input::Chat(chat), pb::generate_request::Input::TokenIds(ids)]
            .map(|input| request(input).encode_to_vec())
            .into()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_field_is_the_one_that_prost_stumbles_over(
            which in 0usize..2,
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<prop::sample::Index>(),
            whole in any::<bool>(),
        ) {
            let mut bytes = requests().swap_remove(which);
            for (place, byte) in changes {
                let place = place.index(bytes.len());
                bytes[place] = byte;
            }
            if !whole {
                bytes.truncate(cut.index(bytes.len()));
            }
            if let Some((status, error)) = refusal::<pb::GenerateRequest>(&bytes) {
                prop_assert_eq!(field(&status), way(&error), "{}", error);
            }
        }
    }
}
