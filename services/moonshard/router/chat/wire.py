"""Chat's messages to the nouns of this package. Pure."""

from moonshard.errors import RequestError
from moonshard.router.chat.prompt import Conversation
from moonshard.router.chat.tool_choice import Mode, ToolChoice
from moonshard.router.chat.tools import Tool, parse_parameters
from moonshard.rpc.codec import messages_to_dicts
from moonshard.v1 import inference_pb2 as pb

_MODES = {
    pb.ToolChoice.MODE_AUTO: Mode.AUTO,
    pb.ToolChoice.MODE_NONE: Mode.NONE,
    pb.ToolChoice.MODE_REQUIRED: Mode.REQUIRED,
}


def conversation_from_proto(request: pb.ChatRequest) -> Conversation:
    """Raises RequestError naming tools[i].parameters."""
    tools = [
        Tool(tool.name, tool.description, parse_parameters(index, tool.parameters))
        for index, tool in enumerate(request.tools)
    ]
    return Conversation(messages_to_dicts(request.messages), tools, thinks(request))


def thinks(request: pb.ChatRequest) -> bool:
    return request.thinking if request.HasField("thinking") else True


def choice_from_proto(message: pb.ToolChoice) -> ToolChoice:
    """Raises RequestError for a mode of a newer contract."""
    if message.mode not in _MODES:
        raise RequestError("tool_choice.mode", f"unknown value {message.mode}")
    return ToolChoice(_MODES[message.mode], message.name)
