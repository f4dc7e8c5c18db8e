"""Does with `LPLGradBackend` what the server of label-studio-ml 2.x does: /setup, /predict, /webhook."""

from label_studio_ml.model import LabelStudioMLBase

from lplgrad_backend.backend import LPLGradBackend

CONFIG = """<View><Image name="image" value="$image"/><Choices name="kind" toName="image">
<Choice value="cat"/><Choice value="dog"/></Choices></View>"""

assert issubclass(LPLGradBackend, LabelStudioMLBase)
model = LPLGradBackend("3", label_config=CONFIG)
model.set_extra_params("kind")
print(model.get("model_version"))
print(LPLGradBackend("3", label_config=CONFIG).predict([{"id": 1, "data": {"image": "x"}}], context=None)[0]["score"])
print(LPLGradBackend("3").fit("ANNOTATION_CREATED", {"project": {"id": 3}, "annotation": {}})["model_version"])
