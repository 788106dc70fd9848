"""Small pipelines with random weights, one for each family of generators, in the layout of published models.

Their autoencoders have the stages of published ones, so that sizes are rounded and refused as there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.utils import logging as diffusers_logging
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
TOKENS = 260
CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}<assistant>"
)
WIDTH = 16


def tokenizer(max_length: int = 77, short: Sequence[str] = (), **settings: Any) -> Any:
    """Every byte is a token: no text is unknown, and prompts differ in length. Texts that are `short` take no
    more than one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: index for index, token in enumerate([*SPECIAL, *alphabet])}, []))
    if short:
        made.normalizer = normalizers.Sequence([normalizers.Replace(text, "#") for text in short])
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing("<bos> $A <eos>", None, [("<bos>", 1), ("<eos>", 2)])
    named = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, model_max_length=max_length, chat_template=CHAT_TEMPLATE, **named | settings
    )


def clip_text(projected: bool = False, length: int = 77) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=WIDTH,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return (
        transformers.CLIPTextModelWithProjection(config) if projected else transformers.CLIPTextModel(config)
    )


def t5(kind: str = "T5") -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=TOKENS, d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2, pad_token_id=0
    )
    return getattr(transformers, f"{kind}EncoderModel")(config)


def decoder_only(kind: str, model: str, layers: int = 3, heads: int = 2, **settings: Any) -> Any:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=TOKENS,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.3,  # prompts differ visibly
        **settings,
    )
    return getattr(transformers, model)(config)


def qwen_vl() -> Any:
    shape = {"hidden_size": WIDTH, "intermediate_size": WIDTH}
    config = transformers.Qwen2_5_VLConfig(
        text_config=shape
        | {
            "vocab_size": TOKENS,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "initializer_range": 0.3,
            "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        vision_config=shape | {"depth": 1, "num_heads": 2, "out_hidden_size": WIDTH},
        vision_end_token_id=1,
        vision_start_token_id=1,
        image_token_id=1,
        video_token_id=1,
    )
    return transformers.Qwen2_5_VLForConditionalGeneration(config)


def vae(latent_channels: int = 4, kind: str = "AutoencoderKL", **settings: Any) -> Any:
    """Of factor 8, like published ones."""
    return getattr(diffusers, kind)(
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        **settings,
    )


def flow_vae(latent_channels: int = 4) -> Any:
    return vae(
        latent_channels, shift_factor=0.1, scaling_factor=1.0, use_quant_conv=False, use_post_quant_conv=False
    )


def deep_vae() -> Any:
    """Sana's, of factor 32."""
    return diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4,) * 6,
        decoder_block_out_channels=(4,) * 6,
        encoder_qkv_multiscales=((),) * 6,
        decoder_qkv_multiscales=((),) * 6,
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
    )


def video_vae() -> Any:
    """Qwen-Image's, of factor 8."""
    return diffusers.AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1] * 4,
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def flow(**settings: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


def unet(**settings: Any) -> Any:
    usual: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
    }
    return diffusers.UNet2DConditionModel(**usual | settings)


# ---- families --------------------------------------------------------------------------------------


def stable_diffusion(denoiser: Any = None) -> Any:
    return diffusers.StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=tokenizer(),
        unet=denoiser or unet(),
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(scheduler: Any = None) -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projected=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet(
            cross_attention_dim=2 * WIDTH,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=WIDTH + 6 * 8,
        ),
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def sdxl_turbo() -> Any:
    trailing = diffusers.EulerAncestralDiscreteScheduler(timestep_spacing="trailing")
    return sdxl(trailing)


def sdxl_lightning() -> Any:
    return sdxl(diffusers.EulerDiscreteScheduler(timestep_spacing="trailing"))


def sdxl_lcm() -> Any:
    return sdxl(diffusers.LCMScheduler())


def sd3() -> Any:
    return diffusers.StableDiffusion3Pipeline(
        transformer=diffusers.SD3Transformer2DModel(
            sample_size=32,
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=WIDTH,
            joint_attention_dim=2 * WIDTH,
            pooled_projection_dim=2 * WIDTH,
            out_channels=4,
        ),
        scheduler=flow(),
        vae=flow_vae(),
        text_encoder=clip_text(projected=True),
        tokenizer=tokenizer(),
        text_encoder_2=clip_text(projected=True),
        tokenizer_2=tokenizer(),
        text_encoder_3=transformers.T5EncoderModel(
            transformers.T5Config(
                vocab_size=TOKENS, d_model=2 * WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2
            )
        ),
        tokenizer_3=tokenizer(512),
    )


def flux(guidance_embeds: bool) -> Any:
    return diffusers.FluxPipeline(
        transformer=diffusers.FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=guidance_embeds,
        ),
        scheduler=flow(),
        vae=flow_vae(),
        text_encoder=clip_text(),
        tokenizer=tokenizer(),
        text_encoder_2=t5(),
        tokenizer_2=tokenizer(512),
    )


def flux2_klein(is_distilled: bool) -> Any:
    return diffusers.Flux2KleinPipeline(
        transformer=diffusers.Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=3 * WIDTH,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        ),
        scheduler=flow(),
        vae=vae(kind="AutoencoderKLFlux2", use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=decoder_only("Qwen3", "Qwen3ForCausalLM", layers=27, heads=1),
        tokenizer=tokenizer(512),
        is_distilled=is_distilled,
    )


def qwen_image() -> Any:
    return diffusers.QwenImagePipeline(
        transformer=diffusers.QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(8, 4, 4),
        ),
        vae=video_vae(),
        scheduler=flow(),
        text_encoder=qwen_vl(),
        tokenizer=tokenizer(2048),
    )


def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 32, 32],
    )
    with torch.no_grad():  # they are uninitialised memory
        transformer.x_pad_token.fill_(1.0)
        transformer.cap_pad_token.fill_(1.0)
    return diffusers.ZImagePipeline(
        transformer=transformer,
        vae=flow_vae(),
        scheduler=flow(),
        text_encoder=decoder_only("Qwen3", "Qwen3Model"),
        tokenizer=tokenizer(512),
    )


def chroma() -> Any:
    return diffusers.ChromaPipeline(
        transformer=diffusers.ChromaTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            approximator_hidden_dim=16,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        scheduler=flow(),
        vae=flow_vae(),
        text_encoder=t5(),
        tokenizer=tokenizer(512),
    )


def _sana_transformer(**settings: Any) -> Any:
    return diffusers.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=WIDTH,
        sample_size=32,
        **settings,
    )


def _sana_tokenizer(pipeline: type) -> Any:
    """The pipeline puts 1,100 characters of instructions before each prompt, which would take most of the
    time."""
    instructions = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
    return tokenizer(300, short=[line for line in instructions if len(line) > WIDTH], padding_side="right")


def sana() -> Any:
    return diffusers.SanaPipeline(
        transformer=_sana_transformer(),
        vae=deep_vae(),
        scheduler=flow(shift=3.0),
        text_encoder=decoder_only("Gemma2", "Gemma2Model"),
        tokenizer=_sana_tokenizer(diffusers.SanaPipeline),
    )


def sana_sprint() -> Any:
    return diffusers.SanaSprintPipeline(
        transformer=_sana_transformer(qk_norm="rms_norm_across_heads", guidance_embeds=True),
        vae=deep_vae(),
        scheduler=diffusers.SCMScheduler(),
        text_encoder=decoder_only("Gemma2", "Gemma2Model"),
        tokenizer=_sana_tokenizer(diffusers.SanaSprintPipeline),
    )


def pixart_sigma() -> Any:
    return diffusers.PixArtSigmaPipeline(
        transformer=diffusers.PixArtTransformer2DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_channels=WIDTH,
            in_channels=4,
            cross_attention_dim=WIDTH,
            out_channels=8,
        ),
        vae=vae(),
        scheduler=diffusers.DPMSolverMultistepScheduler(),
        text_encoder=t5(),
        tokenizer=tokenizer(300),
    )


def lumina2() -> Any:
    return diffusers.Lumina2Pipeline(
        transformer=diffusers.Lumina2Transformer2DModel(
            sample_size=8,
            in_channels=4,
            hidden_size=16,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(300, 64, 64),
            cap_feat_dim=WIDTH,
        ),
        vae=flow_vae(),
        scheduler=flow(),
        text_encoder=decoder_only("Gemma2", "Gemma2Model"),
        tokenizer=tokenizer(256, padding_side="right"),
    )


def aura_flow() -> Any:
    return diffusers.AuraFlowPipeline(
        transformer=diffusers.AuraFlowTransformer2DModel(
            sample_size=32,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            caption_projection_dim=WIDTH,
            joint_attention_dim=WIDTH,
            out_channels=4,
            pos_embed_max_size=256,
        ),
        vae=vae(),
        scheduler=flow(),
        text_encoder=t5("UMT5"),
        tokenizer=tokenizer(256),
    )


def cogview4() -> Any:
    return diffusers.CogView4Pipeline(
        transformer=diffusers.CogView4Transformer2DModel(
            in_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=WIDTH,
            time_embed_dim=8,
            condition_dim=4,
        ),
        vae=vae(),
        scheduler=flow(
            base_shift=0.25,
            max_shift=0.75,
            base_image_seq_len=256,
            use_dynamic_shifting=True,
            time_shift_type="linear",
        ),
        text_encoder=decoder_only("Glm", "GlmForCausalLM"),
        tokenizer=tokenizer(1024, padding_side="left"),
    )


def hidream() -> Any:
    return diffusers.HiDreamImagePipeline(
        transformer=diffusers.HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[WIDTH, WIDTH],
            text_emb_dim=2 * WIDTH,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=[0, 1],
        ),
        vae=flow_vae(),
        scheduler=flow(),
        text_encoder=clip_text(projected=True, length=248),
        tokenizer=tokenizer(248),
        text_encoder_2=clip_text(projected=True, length=248),
        tokenizer_2=tokenizer(248),
        text_encoder_3=t5(),
        tokenizer_3=tokenizer(512),
        text_encoder_4=decoder_only("Llama", "LlamaForCausalLM"),
        tokenizer_4=tokenizer(512),
    )


PIPELINES: dict[str, Callable[[], Any]] = {
    "SD 1.5": stable_diffusion,
    "SDXL": sdxl,
    "SDXL Turbo": sdxl_turbo,
    "SDXL Lightning": sdxl_lightning,
    "SDXL LCM": sdxl_lcm,
    "SD 3.5": sd3,
    "FLUX.1 dev": lambda: flux(guidance_embeds=True),
    "FLUX.1 schnell": lambda: flux(guidance_embeds=False),
    "FLUX.2 klein base": lambda: flux2_klein(is_distilled=False),
    "FLUX.2 klein": lambda: flux2_klein(is_distilled=True),
    "Qwen-Image": qwen_image,
    "Z-Image": z_image,
    "Chroma": chroma,
    "Sana": sana,
    "Sana Sprint": sana_sprint,
    "PixArt-Sigma": pixart_sigma,
    "Lumina 2": lumina2,
    "AuraFlow": aura_flow,
    "CogView4": cogview4,
    "HiDream": hidream,
}


def stable_diffusion_lcm() -> Any:
    """With a distilled UNet, which takes the guidance scale as an input."""
    return stable_diffusion(unet(time_cond_proj_dim=8))


def latent_consistency() -> Any:
    return diffusers.LatentConsistencyModelPipeline(
        vae=vae(),
        text_encoder=clip_text(),
        tokenizer=tokenizer(),
        unet=unet(time_cond_proj_dim=8),
        scheduler=diffusers.LCMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def pixart_alpha() -> Any:
    return diffusers.PixArtAlphaPipeline(**pixart_sigma().components)


VARIANTS: dict[str, Callable[[], Any]] = {
    "SD 1.5 LCM": stable_diffusion_lcm,
    "Latent Consistency Model": latent_consistency,
    "PixArt-alpha": pixart_alpha,
}
"""Close relatives, which no benchmark shows."""


def save_pipeline(family: str, folder: Path) -> Path:
    """The same weights each time."""
    diffusers_logging.set_verbosity_error()
    torch.manual_seed(0)
    pipeline = (PIPELINES | VARIANTS)[family]()
    _enliven(getattr(pipeline, "transformer", None))
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _enliven(transformer: Any) -> None:
    """Larger weights: as they are initialised, an image hardly depends on its prompt."""
    for parameter in transformer.parameters() if transformer is not None else ():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
