"""Ring 3: one recipe, one run. Recipes, data, models and the fine-tuning that the command `paca finetune` starts."""
