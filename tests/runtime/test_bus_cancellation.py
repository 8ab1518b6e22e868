"""A cancellation that the NATS client swallows still ends the task that was cancelled."""

import asyncio

from madang.runtime.bus import _heeding_cancellation


def test_a_cancellation_that_comes_with_the_answer_is_heeded():
    async def run():
        answer = asyncio.get_running_loop().create_future()

        async def ask():
            # What the client does inside.
            with _heeding_cancellation():
                await asyncio.wait_for(answer, 10)

        task = asyncio.create_task(ask())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        answer.set_result("answer")
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(run())


def test_without_a_cancellation_nothing_is_raised_and_time_limits_still_work():
    async def run():
        with _heeding_cancellation():
            await asyncio.sleep(0)
        try:
            async with asyncio.timeout(0.01):
                with _heeding_cancellation():
                    await asyncio.Event().wait()
        except TimeoutError:
            return True

    assert asyncio.run(run()) is True
