"""A DAG of Airflow."""
