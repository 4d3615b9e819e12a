/** Tasks that run at once: files that are removed, or folders that are synced. */
const tasksAtOnce = 4

/** Runs a task for each item, some at a time. @throws what the first failing task threw, when all have ended */
export async function inParallel<Item>(
  items: readonly Item[],
  task: (item: Item) => Promise<void>,
): Promise<void> {
  const rest = items.values()
  const lane = async () => {
    for (const item of rest) await task(item)
  }
  const lanes = await Promise.allSettled(Array.from({ length: tasksAtOnce }, lane))
  const failed = lanes.find((result) => result.status === 'rejected')
  if (failed !== undefined) throw failed.reason
}
