"""LiteLLM's own books: a callback inside the proxy that notes what it says each call has cost."""

import json
import os

from litellm.integrations.custom_logger import CustomLogger


class SpendLog(CustomLogger):
    """Appends one JSON line a call to the file that SPEND_LOG names."""

    async def async_log_success_event(self, kwargs, response_obj, start_time, end_time):
        cost = kwargs.get("response_cost")
        entry = {
            "call_id": kwargs.get("litellm_call_id"),
            "model": kwargs.get("model"),
            "customer": kwargs.get("standard_logging_object", {}).get("end_user"),
            "cost": None if cost is None else repr(cost),
        }
        with open(os.environ["SPEND_LOG"], "a", encoding="utf-8") as log:
            log.write(json.dumps(entry) + "\n")


recorder = SpendLog()
