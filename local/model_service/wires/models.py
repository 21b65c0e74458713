"""`GET /models` and `GET /models/MODEL`: the deployments of the account."""

from collections.abc import Iterator

from aiohttp import web

from local.model_service.deployments import ANY_DEPLOYMENT
from local.model_service.encoding import Document, json_response
from local.model_service.wires.base import DATED, V1, Wire, dated


class Models(Wire):
    """The list of models. Any name that does not mean a missing deployment is a model's."""

    name = "models"

    def routes(self) -> Iterator[web.RouteDef]:
        for base in V1:
            yield web.get(f"{base}/models", self._list)
            yield web.get(f"{base}/models/{{model}}", self._retrieve)
        yield web.get(f"{DATED}/models", dated(self._list))
        yield web.get(f"{DATED}/models/{{model}}", dated(self._retrieve))

    async def _list(self, request: web.Request) -> web.StreamResponse:
        error = self.state.authenticate(request)[1] or self.state.lasting_error(ANY_DEPLOYMENT)
        if error:
            return error.as_response()
        return json_response({"object": "list", "data": [_model(name) for name in self.state.deployments]})

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["model"]
        error = self.state.authenticate(request)[1] or self.state.lasting_error(name)
        if error:
            return error.as_response()
        return json_response(_model(name))


def _model(name: str) -> Document:
    return {"id": name, "object": "model", "created": 1773705600, "owned_by": "azure-openai"}
