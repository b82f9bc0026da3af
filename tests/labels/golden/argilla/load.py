"""Makes an Argilla dataset of this folder. Run it in the folder, with ARGILLA_API_URL and ARGILLA_API_KEY set."""

import argilla as rg

client = rg.Argilla()
settings = rg.Settings(
    fields=[rg.TextField(name='text')],
    questions=[rg.LabelQuestion(name='label', labels=['cat', 'a "b" & <c>'])],
    metadata=[
        rg.TermsMetadataProperty("raystream_id"),
        rg.TermsMetadataProperty("raystream_query"),
        rg.IntegerMetadataProperty("raystream_rank"),
        rg.FloatMetadataProperty("raystream_score"),
        rg.FloatMetadataProperty("raystream_confidence"),
        rg.TermsMetadataProperty("raystream_why"),
        rg.IntegerMetadataProperty("raystream_represents"),
    ],
)
dataset = client.datasets('raystream-round-1')
if dataset is None:
    dataset = rg.Dataset(name='raystream-round-1', settings=settings, client=client).create()
dataset.records.from_json("records.json")  # records of known ids are updated, so running it twice adds nothing
