"""Tiny random models of many architectures, with every part that their large ones have

`make(name)` builds one in less than a second: seeded, in evaluation mode and 32 bits, with all
weights moved away from where they begin, because a bias of zero hides a wrong one.
"""

import torch
import transformers as tf

VOCAB, WIDTH, POSITIONS = 64, 32, 64
PAD, EOS, BOS, MASK = 0, 1, 2, 63  # what none of the tests' texts contains

L = dict(
    hidden_size=WIDTH,
    intermediate_size=2 * WIDTH,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=POSITIONS,
)
G = L | dict(num_key_value_heads=1)
GPT = dict(n_embd=WIDTH, n_layer=2, n_head=2, n_positions=POSITIONS)
OPT = dict(
    hidden_size=WIDTH,
    ffn_dim=2 * WIDTH,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=POSITIONS,
)
XLM = dict(emb_dim=WIDTH, n_layers=2, n_heads=2, max_position_embeddings=POSITIONS)
S2S = dict(
    d_model=WIDTH,
    encoder_layers=1,
    decoder_layers=1,
    encoder_attention_heads=2,
    decoder_attention_heads=2,
    encoder_ffn_dim=2 * WIDTH,
    decoder_ffn_dim=2 * WIDTH,
    max_position_embeddings=POSITIONS,
)
T5 = dict(d_model=WIDTH, d_kv=16, d_ff=2 * WIDTH, num_layers=2, num_heads=2)
SCALED = dict(scale_embedding=True)
MAMBA = dict(mamba_d_state=8, mamba_n_groups=1, mamba_chunk_size=4)
EXPERTS = dict(num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16)
GEMMA = G | dict(head_dim=16)
MIXED = dict(sliding_window=3, layer_types=['sliding_attention', 'full_attention'])
LATENT = dict(q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8)
LINEAR = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
)
GEMMA4 = GEMMA | MIXED | dict(global_head_dim=16, num_kv_shared_layers=0)
DECODER = L | dict(is_decoder=True)

# name → (class, class of its configuration without "Config", sizes)
CAUSAL = {
    'Llama': ('LlamaForCausalLM', 'Llama', G),
    'Mistral': ('MistralForCausalLM', 'Mistral', G | dict(sliding_window=3)),
    'Mixtral': ('MixtralForCausalLM', 'Mixtral', G | dict(num_local_experts=2)),
    'Ministral': ('MinistralForCausalLM', 'Ministral', GEMMA | MIXED),
    'Qwen2': ('Qwen2ForCausalLM', 'Qwen2', G),
    'Qwen2-MoE': (
        'Qwen2MoeForCausalLM',
        'Qwen2Moe',
        G | EXPERTS | dict(shared_expert_intermediate_size=16),
    ),
    'Qwen3': ('Qwen3ForCausalLM', 'Qwen3', GEMMA),
    'Qwen3-MoE': ('Qwen3MoeForCausalLM', 'Qwen3Moe', GEMMA | EXPERTS),
    'Qwen3-Next': (
        'Qwen3NextForCausalLM',
        'Qwen3Next',
        GEMMA
        | EXPERTS
        | LINEAR
        | dict(
            layer_types=['linear_attention', 'full_attention'],
            shared_expert_intermediate_size=16,
        ),
    ),
    'Phi': ('PhiForCausalLM', 'Phi', L),
    'Phi-3': ('Phi3ForCausalLM', 'Phi3', G),
    'Gemma': ('GemmaForCausalLM', 'Gemma', GEMMA),
    'Gemma-2': ('Gemma2ForCausalLM', 'Gemma2', GEMMA | dict(sliding_window=3)),
    'Gemma-3': ('Gemma3ForCausalLM', 'Gemma3Text', GEMMA | dict(sliding_window=3)),
    'Gemma-3n': (
        'Gemma3nForCausalLM',
        'Gemma3nText',
        GEMMA
        | dict(
            sliding_window=3,
            num_hidden_layers=4,
            layer_types=['sliding_attention', 'full_attention'] * 2,
            num_kv_shared_layers=2,
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=VOCAB,
            laurel_rank=4,
            activation_sparsity_pattern=[0.0] * 4,
            altup_num_inputs=2,
        ),
    ),
    'Gemma-4': (
        'Gemma4ForCausalLM',
        'Gemma4Text',
        GEMMA4 | dict(hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB),
    ),
    'Gemma-4 without per-layer inputs': (
        'Gemma4ForCausalLM',
        'Gemma4Text',
        GEMMA4 | dict(hidden_size_per_layer_input=0, vocab_size_per_layer_input=VOCAB),
    ),
    'RecurrentGemma': (
        'RecurrentGemmaForCausalLM',
        'RecurrentGemma',
        {k: v for k, v in G.items() if k != 'max_position_embeddings'}
        | dict(attention_window_size=4, lru_width=WIDTH, block_types=['recurrent', 'attention']),
    ),
    'GPT-2': ('GPT2LMHeadModel', 'GPT2', GPT),
    'GPT-Neo': (
        'GPTNeoForCausalLM',
        'GPTNeo',
        dict(
            hidden_size=WIDTH,
            num_layers=2,
            num_heads=2,
            attention_types=[[['global', 'local'], 1]],
            window_size=3,
            max_position_embeddings=POSITIONS,
        ),
    ),
    'GPT-J': ('GPTJForCausalLM', 'GPTJ', GPT | dict(rotary_dim=8)),
    'GPT-NeoX': ('GPTNeoXForCausalLM', 'GPTNeoX', DECODER),
    'GPT-NeoX Japanese': ('GPTNeoXJapaneseForCausalLM', 'GPTNeoXJapanese', L),
    'GPT-BigCode': ('GPTBigCodeForCausalLM', 'GPTBigCode', GPT),
    'GPT-OSS': (
        'GptOssForCausalLM',
        'GptOss',
        GEMMA | dict(num_local_experts=2, num_experts_per_tok=1, sliding_window=3),
    ),
    'CodeGen': ('CodeGenForCausalLM', 'CodeGen', GPT | dict(n_head=4, rotary_dim=4)),
    'OpenAI GPT': ('OpenAIGPTLMHeadModel', 'OpenAIGPT', GPT),
    'CTRL': ('CTRLLMHeadModel', 'CTRL', GPT | dict(dff=2 * WIDTH)),
    'Starcoder2': ('Starcoder2ForCausalLM', 'Starcoder2', G),
    'OPT': ('OPTForCausalLM', 'OPT', OPT | dict(word_embed_proj_dim=WIDTH)),
    'OPT-350m': (
        'OPTForCausalLM',
        'OPT',
        OPT | dict(word_embed_proj_dim=16, do_layer_norm_before=False),
    ),
    'BLOOM': ('BloomForCausalLM', 'Bloom', dict(hidden_size=WIDTH, n_layer=2, n_head=2)),
    'MPT': ('MptForCausalLM', 'Mpt', dict(d_model=WIDTH, n_layers=2, n_heads=2, max_seq_len=64)),
    'Falcon': (
        'FalconForCausalLM',
        'Falcon',
        dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, alibi=False),
    ),
    'Falcon with ALiBi': (
        'FalconForCausalLM',
        'Falcon',
        dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, alibi=True),
    ),
    'Falcon-H1': (
        'FalconH1ForCausalLM',
        'FalconH1',
        G | MAMBA | dict(mamba_d_ssm=WIDTH, mamba_n_heads=2, mamba_d_head=16),
    ),
    'Granite': ('GraniteForCausalLM', 'Granite', G | dict(embedding_multiplier=6.0)),
    'Granite-MoE': (
        'GraniteMoeForCausalLM',
        'GraniteMoe',
        G | dict(num_local_experts=2, num_experts_per_tok=1, embedding_multiplier=6.0),
    ),
    'StableLM': ('StableLmForCausalLM', 'StableLm', G),
    'OLMo': ('OlmoForCausalLM', 'Olmo', G),
    'OLMo-2': ('Olmo2ForCausalLM', 'Olmo2', G),
    'OLMo-3': ('Olmo3ForCausalLM', 'Olmo3', G | MIXED),
    'OLMoE': ('OlmoeForCausalLM', 'Olmoe', G | dict(num_experts=2, num_experts_per_tok=1)),
    'Cohere': ('CohereForCausalLM', 'Cohere', G),
    'Cohere-2': ('Cohere2ForCausalLM', 'Cohere2', G | MIXED),
    'Persimmon': ('PersimmonForCausalLM', 'Persimmon', L),
    'DeepSeek-V2': (
        'DeepseekV2ForCausalLM',
        'DeepseekV2',
        L
        | LATENT
        | dict(
            num_key_value_heads=2,
            n_routed_experts=2,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            first_k_dense_replace=1,
        ),
    ),
    'DeepSeek-V3': (
        'DeepseekV3ForCausalLM',
        'DeepseekV3',
        L
        | LATENT
        | dict(
            num_key_value_heads=2,
            n_routed_experts=2,
            n_group=1,
            topk_group=1,
            num_experts_per_tok=1,
            moe_intermediate_size=16,
            first_k_dense_replace=1,
        ),
    ),
    'SmolLM3': ('SmolLM3ForCausalLM', 'SmolLM3', G),
    'Nemotron': ('NemotronForCausalLM', 'Nemotron', G),
    'GLM': ('GlmForCausalLM', 'Glm', GEMMA),
    'GLM-4': ('Glm4ForCausalLM', 'Glm4', GEMMA),
    'Helium': ('HeliumForCausalLM', 'Helium', GEMMA),
    'Ernie 4.5': ('Ernie4_5ForCausalLM', 'Ernie4_5', GEMMA),
    'EXAONE-4': ('Exaone4ForCausalLM', 'Exaone4', G | MIXED),
    'Arcee': ('ArceeForCausalLM', 'Arcee', G),
    'Apertus': ('ApertusForCausalLM', 'Apertus', G),
    'Llama-4': (
        'Llama4ForCausalLM',
        'Llama4Text',
        GEMMA
        | dict(
            intermediate_size_mlp=64,
            num_local_experts=2,
            num_experts_per_tok=1,
            attention_chunk_size=8,
        ),
    ),
    'MiniMax': (
        'MiniMaxForCausalLM',
        'MiniMax',
        GEMMA
        | dict(
            num_local_experts=2,
            num_experts_per_tok=1,
            block_size=4,
            layer_types=['linear_attention', 'full_attention'],
        ),
    ),
    'XGLM': (
        'XGLMForCausalLM',
        'XGLM',
        dict(
            d_model=WIDTH,
            num_layers=2,
            attention_heads=2,
            ffn_dim=64,
            max_position_embeddings=POSITIONS,
        ),
    ),
    'BioGPT': ('BioGptForCausalLM', 'BioGpt', L),
    'Mamba': (
        'MambaForCausalLM',
        'Mamba',
        dict(hidden_size=WIDTH, num_hidden_layers=2, state_size=4),
    ),
    'Mamba-2': (
        'Mamba2ForCausalLM',
        'Mamba2',
        dict(
            hidden_size=WIDTH,
            num_hidden_layers=2,
            state_size=8,
            head_dim=16,
            num_heads=4,
            expand=2,
            n_groups=1,
            chunk_size=4,
        ),
    ),
    'Falcon-Mamba': (
        'FalconMambaForCausalLM',
        'FalconMamba',
        dict(hidden_size=WIDTH, num_hidden_layers=2, state_size=4),
    ),
    'RWKV': (
        'RwkvForCausalLM',
        'Rwkv',
        dict(hidden_size=WIDTH, num_hidden_layers=2, context_length=POSITIONS),
    ),
    'Jamba': (
        'JambaForCausalLM',
        'Jamba',
        G
        | dict(
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=2,
            num_experts_per_tok=1,
            mamba_d_state=4,
            mamba_dt_rank=4,
            use_mamba_kernels=False,
        ),
    ),
    'Bamba': (
        'BambaForCausalLM',
        'Bamba',
        G | MAMBA | dict(mamba_n_heads=4, mamba_d_head=16, attn_layer_indices=[1]),
    ),
    'Zamba': (
        'ZambaForCausalLM',
        'Zamba',
        G
        | dict(
            num_hidden_layers=6,
            num_key_value_heads=2,
            mamba_d_state=4,
            mamba_dt_rank=4,
            n_mamba_heads=2,
            attn_layer_period=3,
            attn_layer_offset=2,
            use_mamba_kernels=False,
        ),
    ),
    'LFM2': (
        'Lfm2ForCausalLM',
        'Lfm2',
        G | dict(layer_types=['conv', 'full_attention'], block_multiple_of=8),
    ),
    'XLNet': (
        'XLNetLMHeadModel',
        'XLNet',
        dict(d_model=WIDTH, n_layer=2, n_head=2, d_inner=64),
    ),
    'CPM-Ant': (
        'CpmAntForCausalLM',
        'CpmAnt',
        dict(
            hidden_size=WIDTH,
            num_attention_heads=2,
            dim_head=16,
            dim_ff=64,
            num_hidden_layers=2,
            prompt_length=2,
        ),
    ),
    'Reformer': (
        'ReformerModelWithLMHead',
        'Reformer',
        dict(
            hidden_size=WIDTH,
            attention_head_size=16,
            num_attention_heads=2,
            feed_forward_size=64,
            attn_layers=['local', 'local'],
            local_attn_chunk_length=8,
            axial_pos_shape=(8, 8),
            axial_pos_embds_dim=(16, 16),
            max_position_embeddings=POSITIONS,
            is_decoder=True,
        ),
    ),
    'BERT as a decoder': ('BertLMHeadModel', 'Bert', DECODER),
    'RoBERTa as a decoder': ('RobertaForCausalLM', 'Roberta', DECODER),
    'MegatronBERT as a decoder': ('MegatronBertForCausalLM', 'MegatronBert', DECODER),
    'RoFormer as a decoder': ('RoFormerForCausalLM', 'RoFormer', DECODER),
    'RemBERT as a decoder': (
        'RemBertForCausalLM',
        'RemBert',
        DECODER | dict(input_embedding_size=16, output_embedding_size=24),
    ),
    'BigBird as a decoder': (
        'BigBirdForCausalLM',
        'BigBird',
        DECODER | dict(attention_type='original_full'),
    ),
    'ELECTRA as a decoder': ('ElectraForCausalLM', 'Electra', DECODER | dict(embedding_size=16)),
    'BERT without is_decoder': ('BertLMHeadModel', 'Bert', L),
    'BART as a decoder': ('BartForCausalLM', 'Bart', S2S),
    'XLM': ('XLMWithLMHeadModel', 'XLM', XLM | dict(causal=True, n_langs=1)),
}

MASKED = {
    'BERT': ('BertForMaskedLM', 'Bert', L),
    'RoBERTa': ('RobertaForMaskedLM', 'Roberta', L),
    'RoBERTa-PreLayerNorm': ('RobertaPreLayerNormForMaskedLM', 'RobertaPreLayerNorm', L),
    'XLM-RoBERTa': ('XLMRobertaForMaskedLM', 'XLMRoberta', L),
    'XLM-RoBERTa-XL': ('XLMRobertaXLForMaskedLM', 'XLMRobertaXL', L),
    'CamemBERT': ('CamembertForMaskedLM', 'Camembert', L),
    'data2vec-text': ('Data2VecTextForMaskedLM', 'Data2VecText', L),
    'DistilBERT': (
        'DistilBertForMaskedLM',
        'DistilBert',
        dict(dim=WIDTH, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=POSITIONS),
    ),
    'ALBERT': ('AlbertForMaskedLM', 'Albert', L | dict(embedding_size=16)),
    'ELECTRA': ('ElectraForMaskedLM', 'Electra', L | dict(embedding_size=16)),
    'ERNIE': ('ErnieForMaskedLM', 'Ernie', L),
    'DeBERTa': ('DebertaForMaskedLM', 'Deberta', L),
    'DeBERTa with relative positions': (
        'DebertaForMaskedLM',
        'Deberta',
        L | dict(relative_attention=True, pos_att_type=['p2c', 'c2p'], position_biased_input=False),
    ),
    'DeBERTa-v2': (
        'DebertaV2ForMaskedLM',
        'DebertaV2',
        L | dict(relative_attention=True, position_buckets=8, pos_att_type=['p2c', 'c2p']),
    ),
    'ModernBERT': (
        'ModernBertForMaskedLM',
        'ModernBert',
        L | dict(local_attention=4, cls_token_id=2, sep_token_id=1),
    ),
    'EuroBERT': ('EuroBertForMaskedLM', 'EuroBert', G),
    'MPNet': ('MPNetForMaskedLM', 'MPNet', L),
    'ESM': ('EsmForMaskedLM', 'Esm', L | dict(position_embedding_type='rotary')),
    'ESM with token dropout': (
        'EsmForMaskedLM',
        'Esm',
        L | dict(position_embedding_type='rotary', token_dropout=True),
    ),
    'Longformer': ('LongformerForMaskedLM', 'Longformer', L | dict(attention_window=[4, 4])),
    'BigBird': ('BigBirdForMaskedLM', 'BigBird', L | dict(attention_type='original_full')),
    'MobileBERT': (
        'MobileBertForMaskedLM',
        'MobileBert',
        L | dict(embedding_size=16, intra_bottleneck_size=16, true_hidden_size=16),
    ),
    'MegatronBERT': ('MegatronBertForMaskedLM', 'MegatronBert', L),
    'RemBERT': (
        'RemBertForMaskedLM',
        'RemBert',
        L | dict(input_embedding_size=16, output_embedding_size=24),
    ),
    'RoFormer': ('RoFormerForMaskedLM', 'RoFormer', L),
    'FNet': (
        'FNetForMaskedLM',
        'FNet',
        {k: v for k, v in L.items() if k != 'num_attention_heads'},
    ),
    'ConvBERT': (
        'ConvBertForMaskedLM',
        'ConvBert',
        L | dict(embedding_size=16, conv_kernel_size=3, head_ratio=1),
    ),
    'Nystromformer': (
        'NystromformerForMaskedLM',
        'Nystromformer',
        L | dict(num_landmarks=64, segment_means_seq_len=64, conv_kernel_size=3),
    ),
    'YOSO': ('YosoForMaskedLM', 'Yoso', L | dict(use_expectation=True)),
    'LUKE': (
        'LukeForMaskedLM',
        'Luke',
        L | dict(entity_vocab_size=8, entity_emb_size=16),
    ),
    'Funnel': (
        'FunnelForMaskedLM',
        'Funnel',
        dict(
            d_model=WIDTH,
            n_head=2,
            d_head=16,
            d_inner=64,
            block_sizes=[1, 1],
            num_decoder_layers=1,
        ),
    ),
    'SqueezeBERT': ('SqueezeBertForMaskedLM', 'SqueezeBert', L | dict(embedding_size=WIDTH)),
    'Flaubert': ('FlaubertWithLMHeadModel', 'Flaubert', XLM),
    'XLM as a masked model': ('XLMWithLMHeadModel', 'XLM', XLM | dict(n_langs=1)),
    'I-BERT': ('IBertForMaskedLM', 'IBert', L),
    'Perceiver': (
        'PerceiverForMaskedLM',
        'Perceiver',
        dict(
            d_model=WIDTH,
            d_latents=WIDTH,
            num_latents=4,
            num_self_attends_per_block=1,
            num_self_attention_heads=2,
            num_cross_attention_heads=2,
            qk_channels=WIDTH,
            v_channels=WIDTH,
            max_position_embeddings=POSITIONS,
        ),
    ),
}

SEQ2SEQ = {
    'T5': ('T5ForConditionalGeneration', 'T5', T5),
    'FLAN-T5': (
        'T5ForConditionalGeneration',
        'T5',
        T5 | dict(feed_forward_proj='gated-gelu', tie_word_embeddings=False),
    ),
    'mT5': ('MT5ForConditionalGeneration', 'MT5', T5),
    'UMT5': ('UMT5ForConditionalGeneration', 'UMT5', T5),
    'LongT5': ('LongT5ForConditionalGeneration', 'LongT5', T5 | dict(local_radius=4)),
    'Switch Transformers': (
        'SwitchTransformersForConditionalGeneration',
        'SwitchTransformers',
        T5 | dict(num_decoder_layers=2, num_experts=2, expert_capacity=64),
    ),
    'BART': ('BartForConditionalGeneration', 'Bart', S2S),
    'BART with scaled embeddings': ('BartForConditionalGeneration', 'Bart', S2S | SCALED),
    'mBART': ('MBartForConditionalGeneration', 'MBart', S2S | SCALED),
    'PLBart': ('PLBartForConditionalGeneration', 'PLBart', S2S | SCALED),
    'MVP': ('MvpForConditionalGeneration', 'Mvp', S2S),
    'Pegasus': ('PegasusForConditionalGeneration', 'Pegasus', S2S | SCALED),
    'Pegasus-X': (
        'PegasusXForConditionalGeneration',
        'PegasusX',
        S2S | SCALED | dict(block_size=8, num_global_tokens=2),
    ),
    'Marian': ('MarianMTModel', 'Marian', S2S | SCALED),
    'M2M100': ('M2M100ForConditionalGeneration', 'M2M100', S2S | SCALED),
    'NLLB-MoE': (
        'NllbMoeForConditionalGeneration',
        'NllbMoe',
        S2S
        | SCALED
        | dict(num_experts=2, expert_capacity=64, encoder_sparse_step=1, decoder_sparse_step=1),
    ),
    'Blenderbot': ('BlenderbotForConditionalGeneration', 'Blenderbot', S2S | SCALED),
    'Blenderbot-Small': ('BlenderbotSmallForConditionalGeneration', 'BlenderbotSmall', S2S),
    'BigBird-Pegasus': (
        'BigBirdPegasusForConditionalGeneration',
        'BigBirdPegasus',
        S2S | SCALED | dict(attention_type='original_full'),
    ),
    'LED': (
        'LEDForConditionalGeneration',
        'LED',
        {k: v for k, v in S2S.items() if k != 'max_position_embeddings'}
        | dict(
            max_encoder_position_embeddings=POSITIONS,
            max_decoder_position_embeddings=POSITIONS,
            attention_window=[4],
        ),
    ),
    'ProphetNet': (
        'ProphetNetForConditionalGeneration',
        'ProphetNet',
        dict(
            hidden_size=WIDTH,
            num_encoder_layers=1,
            num_decoder_layers=1,
            num_encoder_attention_heads=2,
            num_decoder_attention_heads=2,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=POSITIONS,
        ),
    ),
    'FSMT': (
        'FSMTForConditionalGeneration',
        'FSMT',
        S2S | dict(src_vocab_size=VOCAB, tgt_vocab_size=VOCAB, langs=['en', 'de']),
    ),
    'T5Gemma': ('T5GemmaForConditionalGeneration', 'T5Gemma', GEMMA | MIXED),
}

ARCHITECTURES = CAUSAL | MASKED | SEQ2SEQ


def configuration(name):
    "Configuration of a tiny model of an architecture"
    _, kind, sizes = ARCHITECTURES[name]
    common = dict(pad_token_id=PAD, eos_token_id=EOS, bos_token_id=BOS, vocab_size=VOCAB)
    common |= dict(initializer_range=0.3, init_std=0.3, mask_token_id=MASK)
    if name in SEQ2SEQ:
        common |= dict(decoder_start_token_id=BOS)
    if name == 'FSMT':
        del common['vocab_size']
    if name == 'T5Gemma':
        half = common | sizes
        sizes = dict(encoder=dict(half), decoder=dict(half))
    return getattr(tf, kind + 'Config')(**common | sizes)


@torch.no_grad()
def make(name, seed=0):
    "A tiny random model, with no weight at a zero that hides something"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = getattr(tf, ARCHITECTURES[name][0])(configuration(name))
        for parameter in model.parameters():  # a shared one comes once
            if parameter.is_floating_point():
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.config._name_or_path = model.name_or_path = f'tiny-{name}'
    return model.float().requires_grad_(True).eval()
