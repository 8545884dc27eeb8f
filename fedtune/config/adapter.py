"""The settings of the adapter: what is trained on top of the base model."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from fedtune.config.section import Section


class AdapterConfig(Section):
    """What is trained on top of the base model."""

    method: Literal["lora", "fed_sb", "ia3", "prefix_tuning", "prompt_tuning", "full"] = Field(
        "lora",
        description="PEFT method, or `full` fine-tuning. `fed_sb`: LoRA with fixed A and B and a "
        "small matrix R between them, which alone is trained and sent (Fed-SB).",
    )
    lora_r: PositiveInt = Field(8, le=4096, description="lora, fed_sb: rank.")
    lora_alpha: PositiveFloat = Field(
        16.0, description="lora, fed_sb: scale; the update is alpha/r * B A, or alpha/r * B R A."
    )
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(
        0.0, description="lora, fed_sb: dropout."
    )
    target_modules: str | list[str] | None = Field(
        None,
        description="lora, fed_sb, ia3: `all-linear` or a list of module names. Null: `all-linear` "
        "for LoRA and Fed-SB; for IA3 keys, values and feed-forward of the architectures that "
        "`peft` knows.",
    )
    use_rslora: bool = Field(False, description="lora, fed_sb: scale by alpha/sqrt(r) (rsLoRA).")
    use_dora: bool = Field(False, description="lora: weight-decomposed (DoRA).")
    freeze_a: bool = Field(
        False,
        description="lora: A stays at its shared start, only B is trained and sent (FFA-LoRA).",
    )
    num_virtual_tokens: PositiveInt = Field(
        16, le=4096, description="prefix_tuning, prompt_tuning: length of the prefix or prompt."
    )
    init_from: str | None = Field(
        None,
        description="Start from this saved adapter: a folder in PEFT format of the same kind. Not "
        "for fed_sb, which is saved as LoRA: merge it, and start on the merged model.",
    )

    @model_validator(mode="after")
    def _settings_belong_to_the_method(self) -> "AdapterConfig":
        if self.method == "fed_sb" and self.init_from is not None:
            raise ValueError(
                "`init_from` can't be used with `method: fed_sb`: a saved one is the ordinary LoRA "
                "that it amounts to, in which R is no longer apart. Start from it with `method: "
                "lora`, or make one model of it with `fedtune merge` and set `model.path` to that"
            )
        self.refuse_idle("method", _ADAPTER_FIELDS)
        if self.target_modules == [] or (
            isinstance(self.target_modules, str) and self.target_modules != "all-linear"
        ):
            raise ValueError("`target_modules` is `all-linear` or a list of module names")
        if self.use_dora and self.freeze_a:
            raise ValueError(
                "`use_dora` can't be used with `freeze_a`: its scale is not linear in B"
            )
        return self


_PROMPTS = ("prefix_tuning", "prompt_tuning")
_ADAPTER_FIELDS = {
    **dict.fromkeys(("lora_r", "lora_alpha", "lora_dropout", "use_rslora"), ("lora", "fed_sb")),
    **dict.fromkeys(("use_dora", "freeze_a"), ("lora",)),
    "target_modules": ("lora", "fed_sb", "ia3"),
    "num_virtual_tokens": _PROMPTS,
    "init_from": ("lora", "ia3", *_PROMPTS),
}
